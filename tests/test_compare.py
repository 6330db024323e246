"""kdlib compare: every number against plain NumPy, what intervals are about, and what is refused."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_hex, to_rgb
from PIL import Image
from scipy import stats
from torch import Tensor, nn

from course import plots
from kdlib import cli, compare, compress, data, evaluation, measure, models, verdict
from kdlib.compare import outputs, tables
from kdlib.compare.outputs import Outputs, log_odds
from kdlib.compare.report import FILES, Report
from kdlib.compare.sources import read as read_students
from kdlib.data import DataModule, InMemoryDataset
from kdlib.data.corruptions import DESTRUCTIONS, SEVERITIES, STRENGTHS, corrupt, destroy

CLASSES = ("circle", "square", "star", "cross")
SIDE = 8
CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


def split(count: int, first: int, channels: int = 1) -> InMemoryDataset:
    """Noise with a brighter quarter, another one for each class: learnable, with mistakes."""
    generator = torch.Generator().manual_seed(first)
    labels = torch.randint(0, 4, (count,), generator=generator)
    images = torch.randint(0, 150, (count, channels, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    for number, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        images[number, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 16
    mean, std = (0.31, 0.29, 0.33)[:channels], (0.17, 0.16, 0.18)[:channels]
    return InMemoryDataset(images, labels, torch.arange(first, first + count), mean, std)


def make_data(channels: int = 1) -> DataModule:
    parts = {"train": split(400, 0, channels), "validation": split(150, 400, channels)}
    parts |= {"test": split(300, 550, channels)}
    return DataModule("corners", CLASSES, **parts, augmentation=data.NO_AUGMENTATION, image_size=SIDE)


DATA = make_data()


def linear(seed: int, images: int = 100, sharpness: float = 3.0, source: DataModule = DATA) -> nn.Module:
    """The least-squares classifier of some training images; the fewer, the worse."""
    chosen = torch.randperm(400, generator=torch.Generator().manual_seed(seed))[:images]
    train = source.train.select(chosen)
    pixels = data.normalized_images(train).flatten(1).double()
    pixels = torch.cat([pixels, torch.ones(len(pixels), 1, dtype=torch.float64)], 1)
    wanted = F.one_hot(train.labels, 4).double()
    ridge = 30 * torch.eye(pixels.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(pixels.T @ pixels + ridge, pixels.T @ wanted).float() * sharpness
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels.shape[1] - 1, 4))
    with torch.no_grad():
        model[1].weight.copy_(weights[:-1].T)
        model[1].bias.copy_(weights[-1])
    return model.eval()


def run(students: Any, source: DataModule = DATA, **options: Any) -> Report:
    return compare.compare(students, source, **{"progress": False, **CPU, **options})


def logits_of(model: nn.Module, dataset: Any = DATA.test) -> Tensor:
    return evaluation.evaluate(model, dataset, **CPU).logits


def right_of(model: nn.Module, dataset: Any = DATA.test) -> np.ndarray:
    return (logits_of(model, dataset).argmax(1) == dataset.labels).numpy().astype(float)


def row_of(table: pd.DataFrame, network: str, **keys: Any) -> dict[str, Any]:
    rows = [row for row in table.to_dict("records") if row["network"] == network]
    (row,) = [row for row in rows if all(row[key] == value for key, value in keys.items())]
    return row


TEACHER = linear(99, 400)
SEEDS = (3, 4, 7)
BASE = {seed: linear(seed, 90) for seed in SEEDS}
BETTER = {seed: linear(seed, 400 - seed) for seed in SEEDS}
OTHER = {seed: linear(seed + 20, 90, sharpness=9) for seed in SEEDS}


@pytest.fixture(scope="module")
def several() -> Report:
    """Two students with three seeds each against a baseline."""
    return run({"hard labels": BASE, "distilled": BETTER, "sharp": OTHER}, teacher=TEACHER)


def test_a_network_whose_weights_cannot_be_counted_is_compared_all_the_same() -> None:
    report = run({"float": BASE[3], "integers": compress.CompiledNetwork(BASE[3])})
    assert json.loads(json.dumps(report.to_dict()))["parameters"] == {"float": 260, "integers": None}


@pytest.fixture(scope="module")
def single() -> Report:
    return run({"hard labels": BASE[3], "distilled": BETTER[3]}, teacher=TEACHER)


def equal(row: dict[str, Any], found: verdict.Comparison, covers: str) -> None:
    assert [row["gain"], row["low"], row["high"]] == pytest.approx([found.mean, found.low, found.high])
    assert (row["verdict"], row["family"], row["covers"]) == (str(found.verdict), found.comparisons, covers)


def by_seed(models: dict[int, nn.Module], of: Callable[[nn.Module], Any]) -> dict[int, Any]:
    return {seed: of(model) for seed, model in models.items()}


# --- accuracy


def test_several_seeds_are_compared_over_seeds_and_images_together(several: Report) -> None:
    mine, base = by_seed(BETTER, right_of), by_seed(BASE, right_of)
    row = row_of(several.accuracy, "distilled")
    assert row["value"] == pytest.approx(np.mean(list(mine.values())))
    assert row["std"] == pytest.approx(np.std([one.mean() for one in mine.values()], ddof=1))
    equal(row, verdict.compare_samples(mine, base, comparisons=2), "seeds and test images")
    own = verdict.compare_samples(mine, {seed: np.zeros_like(one) for seed, one in mine.items()}, confidence=0.95)
    assert (row["value_low"], row["value_high"]) == pytest.approx((own.low, min(1.0, own.high)))


def test_one_network_each_is_compared_over_the_images(single: Report) -> None:
    mine, base = right_of(BETTER[3]), right_of(BASE[3])
    row = row_of(single.accuracy, "distilled")
    equal(row, verdict.compare_networks(mine, base), "test images")
    n, p, z = len(mine), mine.mean(), 1.959963984540054
    middle, reach = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))  # Wilson's interval
    expected = [(middle - reach) / (1 + z**2 / n), (middle + reach) / (1 + z**2 / n)]
    assert [row["value_low"], row["value_high"]] == pytest.approx(expected)
    assert math.isnan(row["std"])


def test_baseline_and_teacher_have_values_and_no_gain(several: Report) -> None:
    for name, expected in (("hard labels", np.mean([right_of(one).mean() for one in BASE.values()])),):
        assert row_of(several.accuracy, name)["value"] == pytest.approx(expected)
    assert row_of(several.accuracy, "teacher")["value"] == pytest.approx(right_of(TEACHER).mean())
    for name in ("hard labels", "teacher"):
        row = row_of(several.accuracy, name)
        assert math.isnan(row["gain"])
        assert row["verdict"] == ""


def test_every_run_has_mcnemars_test_against_its_pair(several: Report) -> None:
    for seed in SEEDS:
        mine, base = right_of(BETTER[seed]), right_of(BASE[seed])
        gained, lost = int(((mine == 1) & (base == 0)).sum()), int(((mine == 0) & (base == 1)).sum())
        row = row_of(several.pairs, "distilled", run=str(seed))
        assert (row["only_network"], row["only_baseline"]) == (gained, lost)
        assert row["p"] == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
        found = verdict.compare_networks(mine, base, comparisons=2)
        assert [row["gain"], row["low"], row["high"]] == pytest.approx([found.mean, found.low, found.high])


def test_the_scatter_of_seeds_of_images_and_of_both_are_told_apart(several: Report, single: Report) -> None:
    mine, base = by_seed(BETTER, right_of), by_seed(BASE, right_of)
    rows = several.uncertainty[several.uncertainty["network"] == "distilled"].to_dict("records")
    means = [np.mean(list(side.values()), axis=0) for side in (mine, base)]
    expected = {
        "test images": verdict.compare_networks(*means, comparisons=2),
        "seeds": verdict.compare(*(by_seed(side, np.mean) for side in (mine, base)), comparisons=2),
        "seeds and test images": verdict.compare_samples(mine, base, comparisons=2),
    }
    for row in rows:
        equal(row, expected.pop(row["covers"]), row["covers"])
        assert row["std"] == pytest.approx(np.std([right.mean() for right in mine.values()], ddof=1))
    assert not expected
    assert len(single.uncertainty) == 0


def test_two_networks_may_differ_where_their_methods_do_not() -> None:
    """The same method twice, with other seeds: one pair is significant, five seeds are inconclusive."""
    sizes = (30, 400, 60, 350, 200)
    first = [linear(seed, size) for seed, size in enumerate(sizes)]
    second = [linear(seed + 50, size) for seed, size in enumerate((*sizes[1:], sizes[0]))]
    report = run({"a": first, "b": second}, corruptions=False)
    assert report.pairs["p"].min() < 0.01
    assert row_of(report.accuracy, "b")["verdict"] == "INCONCLUSIVE"


def test_a_method_that_is_better_at_every_seed_beats_the_baseline(several: Report) -> None:
    assert row_of(several.accuracy, "distilled")["verdict"] == "BEATS"
    turned = run({"distilled": BETTER, "hard labels": BASE}, corruptions=False)
    assert row_of(turned.accuracy, "hard labels")["verdict"] == "LOSES"


# --- fidelity and calibration


@pytest.mark.slow
def test_fidelity_by_plain_loops(several: Report) -> None:
    teacher, labels = logits_of(TEACHER).double(), DATA.test.labels.tolist()
    said = teacher.argmax(1).tolist()
    wrong = [number for number, (answer, label) in enumerate(zip(said, labels, strict=True)) if answer != label]
    assert len(wrong) > 5

    def values(model: nn.Module) -> dict[str, np.ndarray]:
        logits = logits_of(model).double()
        answers = logits.argmax(1).tolist()
        p, q = teacher.softmax(1).numpy(), logits.softmax(1).numpy()
        return {
            "agreement": np.array([float(a == b) for a, b in zip(answers, said, strict=True)]),
            "KL to the teacher": np.array([stats.entropy(one, other) for one, other in zip(p, q, strict=True)]),
            "repeated mistakes": np.array([float(answers[number] == said[number]) for number in wrong]),
        }

    for measure_, better in (("agreement", "higher"), ("KL to the teacher", "lower"), ("repeated mistakes", "lower")):
        mine, base = (by_seed(side, lambda model, m=measure_: values(model)[m]) for side in (BETTER, BASE))
        row = row_of(several.fidelity, "distilled", measure=measure_)
        assert row["value"] == pytest.approx(np.mean(list(mine.values())))
        equal(row, verdict.compare_samples(mine, base, comparisons=6, better=better), "seeds and test images")
        assert row["better"] == better
    assert measure.repeated_mistakes(logits_of(BASE[3]), teacher, DATA.test.labels) == pytest.approx(
        several.each_run["repeated mistakes"][0]
    )


def test_without_a_teacher_there_is_no_fidelity() -> None:
    report = run({"a": BASE[3], "b": BASE[4]}, corruptions=False)
    assert len(report.fidelity) == len(report.robustness) == len(report.outside) == 0
    assert "teacher" not in str(report).lower().replace("teacher, training images", "")
    assert len(report.accuracy) == 2


def test_the_temperature_is_fitted_on_validation_and_used_on_test(several: Report) -> None:
    for seed, model in OTHER.items():
        temperature = measure.fit_temperature(logits_of(model, DATA.validation), DATA.validation.labels)
        row = row_of(several.each_run, "sharp", run=str(seed))
        assert row["temperature"] == pytest.approx(temperature)
        repaired = logits_of(model) / temperature
        assert row["calibration error, temperature-scaled"] == pytest.approx(
            measure.calibration_error(repaired, DATA.test.labels)
        )
        assert row["NLL, temperature-scaled"] == pytest.approx(
            F.cross_entropy(repaired, DATA.test.labels).item(), rel=1e-5
        )
    raw, repaired_ = (row_of(several.calibration, "sharp", measure=m) for m in ("NLL", "NLL, temperature-scaled"))
    assert repaired_["value"] < raw["value"]


def test_a_calibration_error_is_compared_over_seeds_alone(several: Report, single: Report) -> None:
    def error(model: nn.Module) -> float:
        return measure.calibration_error(logits_of(model), DATA.test.labels)

    found = verdict.compare(by_seed(OTHER, error), by_seed(BASE, error), comparisons=8, better="lower", same_unit=True)
    equal(row_of(several.calibration, "sharp", measure="calibration error"), found, "seeds")
    alone = row_of(single.calibration, "distilled", measure="calibration error")
    assert alone["gain"] == pytest.approx(error(BETTER[3]) - error(BASE[3]))
    assert (alone["verdict"], alone["covers"], math.isnan(alone["low"])) == ("", "", True)
    assert row_of(single.calibration, "distilled", measure="NLL")["family"] == 2  # those without an interval are none


def test_the_interval_of_an_accuracy_itself_is_in_no_family_and_the_report_says_so(several: Report) -> None:
    found = run({"hard labels": BASE, "distilled": BETTER}, corruptions=False)
    alone, among_others = (row_of(one.accuracy, "distilled") for one in (found, several))
    assert alone["family"] < among_others["family"]
    for end in ("value_low", "value_high"):
        assert alone[end] == among_others[end]
    assert "under 'its interval' belongs to no family: each holds alone" in several.to_markdown()


# --- classes, corruptions, pictures of nothing


def test_classes_are_one_family(several: Report) -> None:
    for number, name in enumerate(CLASSES):
        chosen = (DATA.test.labels == number).numpy()
        mine, base = (by_seed(side, lambda model, c=chosen: right_of(model)[c]) for side in (BETTER, BASE))
        row = row_of(several.classes, "distilled", **{"class": name})
        assert row["images"] == chosen.sum()
        equal(row, verdict.compare_samples(mine, base, comparisons=8), "seeds and test images")


def test_a_class_without_test_images_has_no_row() -> None:
    few = DATA.test.select((DATA.test.labels != 2).nonzero()[:, 0])
    report = run({"a": BASE[3], "b": BETTER[3]}, replace(DATA, test=few), corruptions=False)
    assert set(report.classes["class"]) == {"circle", "square", "cross"}
    assert row_of(report.classes, "b", **{"class": "cross"})["family"] == 3


def test_classes_of_one_name_are_told_apart() -> None:
    """ImageNet has two cranes, a bird and a machine, with 50 test images each."""
    chosen = torch.cat([(DATA.test.labels == number).nonzero()[:40, 0] for number in range(4)])
    source = replace(DATA, classes=("crane", "square", "crane", "cross"), test=DATA.test.select(chosen))
    report = run({"a": BASE[3], "b": BETTER[3]}, source, corruptions=False)
    names = ["crane (0)", "square", "crane (2)", "cross"]
    assert list(dict.fromkeys(report.classes["class"])) == names
    for number, name in enumerate(names):
        right = right_of(BETTER[3], source.test)[source.test.labels.numpy() == number]
        assert row_of(report.classes, "b", **{"class": name})["value"] == right.mean()
    table = str(report).partition("ACCURACY BY CLASS")[2]
    assert [re.search(rf"^{re.escape(name)} +40 ", table, re.MULTILINE) is not None for name in names] == [True] * 4
    (drawn,) = (axes for axes in report.figure().axes if "by class" in axes.get_title())
    assert [label.get_text() for label in drawn.get_yticklabels()] == names


def test_corruptions_are_the_same_pictures_for_every_network(several: Report) -> None:
    def right(model: nn.Module, kind: str, severity: int) -> np.ndarray:
        images = corrupt(DATA.test.images, DATA.test.indices, kind, severity)
        return right_of(model, replace(DATA.test, images=images))

    for kind, severity in (("noise", 3), ("shift", 1), ("jpeg", 2)):
        mine, base = (by_seed(side, lambda m, k=kind, s=severity: right(m, k, s)) for side in (BETTER, BASE))
        row = row_of(several.robustness, "distilled", corruption=kind, severity=severity)
        assert row["value"] == pytest.approx(np.mean(list(mine.values())))
        equal(row, verdict.compare_samples(mine, base, comparisons=42), "seeds and test images")


def test_the_mean_over_all_corruptions_and_what_they_cost(several: Report) -> None:
    each = several.robustness[(several.robustness["corruption"] != "all")]
    assert len(each) == len(STRENGTHS) * len(SEVERITIES) * 4
    for name in ("distilled", "teacher"):
        whole = row_of(several.robustness, name, corruption="all", measure="accuracy")
        assert whole["value"] == pytest.approx(each[each["network"] == name]["value"].mean())
        lost = row_of(several.robustness, name, corruption="all", measure="accuracy lost")
        assert lost["value"] == pytest.approx(row_of(several.accuracy, name)["value"] - whole["value"])
    assert row_of(several.robustness, "sharp", corruption="all", measure="accuracy lost")["family"] == 4


def test_confidence_in_pictures_of_nothing_by_plain_loops(several: Report) -> None:
    temperature = several.each_run.set_index("network")["temperature"]["teacher"]
    inside = (logits_of(TEACHER) / temperature).double().softmax(1).amax(1).numpy()
    row = row_of(several.outside, "teacher", pictures="test images", measure="confidence, temperature-scaled")
    assert row["value"] == pytest.approx(inside.mean(), rel=1e-5)
    for kind in DESTRUCTIONS:
        nothing = replace(DATA.test, images=destroy(DATA.test.images, DATA.test.indices, kind))
        outside = (logits_of(TEACHER, nothing) / temperature).double().softmax(1).amax(1).numpy()
        row = row_of(several.outside, "teacher", pictures=kind, measure="confidence, temperature-scaled")
        assert row["value"] == pytest.approx(outside.mean(), rel=1e-5)
        auroc = np.mean(inside[:, None] > outside) + np.mean(inside[:, None] == outside) / 2
        assert row_of(several.outside, "teacher", pictures=kind, measure="AUROC")["value"] == pytest.approx(
            auroc, abs=1e-4
        )
        row = row_of(several.outside, "sharp", pictures=kind, measure="AUROC")
        assert (row["covers"], row["family"], row["better"]) == ("seeds", 18, "higher")


def test_networks_that_are_always_sure_are_still_told_from_their_own_doubts() -> None:
    """A temperature far below 1 rounds nearly all confidences to 1: their order is still there."""
    generator = torch.Generator().manual_seed(0)
    inside, outside = (torch.randn(500, 3, generator=generator).double() + shift for shift in (8.0, 4.0))
    inside[:, 1:], outside[:, 1:] = 0, 0
    cold = 0.01
    assert (outside / cold).softmax(1).amax(1).eq(1).float().mean() > 0.9
    nothing = torch.stack(
        [outside.softmax(1).amax(1), (outside / cold).softmax(1).amax(1), log_odds(outside / cold)], 1
    )
    sure = Outputs(inside, cold, {}, {"tiles": nothing.numpy()})
    warm = [one.softmax(1).amax(1).numpy() for one in (inside / 4, outside / 4)]
    wanted = np.mean(warm[0][:, None] > warm[1]) + np.mean(warm[0][:, None] == warm[1]) / 2
    assert 0.9 < wanted < 1
    assert tables._auroc("tiles", sure) == pytest.approx(wanted, abs=1e-6)


# --- how it is done


@dataclass(frozen=True)
class Counted(InMemoryDataset):
    """A split that notes which images are asked for."""

    def iter_batches(self, *arguments: Any, **options: Any) -> Iterator[data.Batch]:
        for batch in super().iter_batches(*arguments, **options):
            READ.extend(batch.indices.tolist())
            yield batch


READ: list[int] = []


def test_the_test_set_is_read_once() -> None:
    READ.clear()
    test = Counted(**{name: getattr(DATA.test, name) for name in ("images", "labels", "indices", "mean", "std")})
    run({"a": [BASE[3], BASE[4]], "b": [BETTER[3], BETTER[4]]}, replace(DATA, test=test), teacher=TEACHER)
    assert DATA.test.indices.tolist() == READ


def test_how_many_images_are_in_memory_changes_nothing(single: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "MOST_IMAGES", 7)
    again = run({"hard labels": BASE[3], "distilled": BETTER[3]}, teacher=TEACHER)
    for name in ("accuracy", "robustness", "outside", "fidelity"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(single, name), rtol=1e-5)


def test_lists_are_paired_by_position_and_mappings_by_key() -> None:
    whole = {"hard labels": list(BASE.values()), "distilled": list(BETTER.values())}
    by_position = run(whole, corruptions=False)
    turned = dict(reversed(BETTER.items()))
    by_key = run({"hard labels": BASE, "distilled": turned}, corruptions=False)
    assert by_position.accuracy.drop(columns="std").equals(by_key.accuracy.drop(columns="std"))
    assert row_of(by_key.pairs, "distilled", run="7")["p"] == row_of(by_position.pairs, "distilled", run="2")["p"]


def test_single_networks_need_no_common_key() -> None:
    report = run({"a": {"seed0": BASE[3]}, "b": {"final": BETTER[3]}}, corruptions=False)
    assert report.pairs["run"].tolist() == ["final / seed0"]
    assert report.runs == {"a": ("seed0",), "b": ("final",)}


def test_networks_come_back_as_they_were() -> None:
    students = {"a": linear(1), "b": linear(2)}
    students["a"].train()
    before = {name: {k: v.clone() for k, v in model.state_dict().items()} for name, model in students.items()}
    state = torch.get_rng_state()
    run(students, images=40)
    assert (students["a"].training, students["b"].training) == (True, False)
    assert all(torch.equal(v, before[n][k]) for n, m in students.items() for k, v in m.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_images_are_so_many_evenly_spaced() -> None:
    report = run({"a": BASE[3], "b": BETTER[3]}, images=30, corruptions=False)
    chosen = DATA.test.select(torch.linspace(0, 299, 30).round().long())
    assert report.images == 30
    assert row_of(report.accuracy, "b")["value"] == pytest.approx(right_of(BETTER[3], chosen).mean())
    assert "30 of 300 test images" in str(report)


def test_images_in_colour_of_a_lazy_dataset(tmp_path: Path) -> None:
    for part, count in (("train", 10), ("val", 12)):
        for name in ("blue", "red"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 90, (40, 40, 3), dtype=np.uint8)
                pixels[..., 0 if name == "red" else 2] += 120
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    folder = data.load(f"imagefolder:{tmp_path}", image_size=16, num_workers=0)
    students = {n: models.build("resnet8", num_classes=2, in_channels=3, seed=s) for s, n in enumerate("ab")}
    report = run(students, folder)
    for name, model in students.items():
        expected = evaluation.evaluate(model, folder.test, **CPU).accuracy
        assert row_of(report.accuracy, name)["value"] == pytest.approx(expected)
    chunk = next(outputs._chunks(folder.test, 1))
    assert torch.equal(
        data.normalized_images(chunk), data.normalized_images(folder.test)
    )  # the bytes are those that were normalized


# --- the report


def test_a_report_about_single_networks_says_so(single: Report, several: Report) -> None:
    for shown in (str(single), single.to_markdown()):
        assert re.search(r"compare these NETWORKS .* nothing of the methods", shown)
    assert "say nothing of the methods" not in str(several)
    assert "3 runs" in str(several)


def test_a_report_on_fewer_seeds_than_the_study_has_for_a_verdict_says_so() -> None:
    students = {name: [linear(seed, images=images) for seed in range(5)] for name, images in (("a", 60), ("b", 200))}
    few = {name: models[:2] for name, models in students.items()}
    assert "2 paired seeds are few" in run(few, corruptions=False).to_markdown()
    assert "seeds are few" not in run(students, corruptions=False).to_markdown()


def test_one_network_under_two_names_is_said() -> None:
    report = run({"a": BASE[3], "b": BETTER[3], "c": BASE[3]}, corruptions=False)
    assert [note for note in report.notes if note.startswith("a and c")]
    assert not [note for note in report.notes if note.startswith("a and b")]


def test_the_dictionary_is_json_without_nan(several: Report, single: Report) -> None:
    for report in (several, single):
        content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        rows = content["tables"]["accuracy"]
        assert rows[0]["gain"] is None
        assert rows[1]["gain"] == pytest.approx(row_of(report.accuracy, "distilled")["gain"])
        assert content["baseline"] == "hard labels"
        assert content["runs"]["distilled"] == list(report.runs["distilled"])
        for name, table in content["tables"].items():
            assert len(table) == len(getattr(report, name))


def test_verdicts_name_the_networks_and_their_gains(several: Report) -> None:
    row = row_of(several.accuracy, "distilled")
    expected = f"accuracy: distilled BEATS hard labels: {100 * row['gain']:+.2f} ({100 * row['low']:+.2f} to "
    assert [one for one in several.verdicts if one.startswith(expected)]
    assert len(several.verdicts) == 2 * 12  # headlines for each of two networks


NASTY = ("a|b `c` *d* _e_", "$x_1$ <b>#")


def test_markdown_tables_hold_any_name() -> None:
    students = dict(zip(NASTY, (BASE[3], BETTER[3]), strict=True))
    report = run(students, teacher=TEACHER, images=60)
    lines = report.to_markdown().splitlines()
    tables = [line for line in lines if line.startswith("|")]
    header = 0
    for before, line in zip(["", *lines], lines, strict=False):
        cells = len(re.findall(r"(?<!\\)\|", line))
        if line.startswith("|") and not before.startswith("|"):
            header = cells
        if line.startswith("|"):
            assert cells == header, line
    assert len(tables) > 50
    assert all(line == line.rstrip() for line in str(report).splitlines())


@pytest.mark.slow
def test_it_is_saved_whole_and_never_overwrites_unasked(single: Report, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    single.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(single.to_dict()))
    assert (folder / "report.md").read_text("utf-8") == single.to_markdown()
    with Image.open(folder / "report.png") as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(10_000_000)) > 100
    before = (folder / "report.json").read_bytes()
    with pytest.raises(ValueError, match="earlier run.*--overwrite"):
        single.save(folder)
    assert (folder / "report.json").read_bytes() == before
    single.save(folder, overwrite=True)


@pytest.mark.slow
def test_a_report_that_cannot_be_drawn_leaves_the_earlier_picture(
    single: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single.save(tmp_path)
    before = (tmp_path / "report.png").read_bytes()

    def broken(self: Report) -> Any:
        raise OSError("no font")

    monkeypatch.setattr(Report, "figure", broken)
    with pytest.raises(OSError, match="no font"):
        single.save(tmp_path, overwrite=True)
    assert (tmp_path / "report.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["several", "single", "plain", "long names"])
def test_the_figure_shows_all_of_its_texts(kind: str, several: Report, single: Report) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if kind in ("several", "single"):
        report = {"several": several, "single": single}[kind]
    else:
        names = ("a", "b", "c") if kind == "plain" else ("W" * 60, "_" + "long " * 11, NASTY[1])
        models_ = dict(zip(names, (BASE[3], BASE[4], BETTER[3]), strict=True))
        report = run(models_, corruptions=kind != "plain", images=50)
    figure = report.figure()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = figure.get_tightbbox(canvas.get_renderer())  # of all that is drawn, in inches
    width, height = figure.get_size_inches()
    assert drawn.x0 >= 0
    assert drawn.y0 >= 0
    assert drawn.x1 <= width
    assert drawn.y1 <= height
    assert len({axes.get_title() for axes in figure.axes}) == len(figure.axes)


def luminance(colour: Any) -> float:
    weights = (0.2126, 0.7152, 0.0722)
    return sum(weight * ((part + 0.055) / 1.055) ** 2.4 for weight, part in zip(weights, to_rgb(colour), strict=True))


def test_numbers_in_bars_stand_out_from_them(several: Report) -> None:
    (axes,) = (axes for axes in several.figure().axes if "in the bars" in axes.get_title())
    assert len(axes.texts) == 4 * len(DESTRUCTIONS)
    for text in axes.texts:
        x = text.xy[0]
        (bar,) = (bar for bar in axes.patches if bar.get_x() < x < bar.get_x() + bar.get_width())
        low, high = sorted(luminance(colour) for colour in (text.get_color(), bar.get_facecolor()))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_networks_means_over_all_corruptions_do_not_hide_each_other(several: Report) -> None:
    (axes,) = (axes for axes in several.figure().axes if axes.get_title().startswith("Robustness"))
    means = [line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 8]
    assert len(set(means)) == 4


def test_each_network_has_a_look_that_means_what_it_is(several: Report) -> None:
    """The course's, where a colour has one meaning; and whoever has no role there has no role's colour."""
    figure = several.figure()
    (legend,) = figure.legends
    found = {
        text.get_text(): (to_hex(line.get_color()).upper(), line.get_marker())
        for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert found["hard labels"] == (plots.BASELINE.colour, plots.BASELINE.marker)
    assert found["teacher"] == (plots.TEACHER.colour, plots.TEACHER.marker)
    colours, markers = ({look[part] for look in found.values()} for part in (0, 1))
    assert len(colours) == len(markers) == len(found) == 4
    drawn = {to_hex(line.get_color()).upper() for axes in figure.axes for line in axes.lines}
    drawn |= {to_hex(bar.get_facecolor()).upper() for axes in figure.axes for bar in axes.patches}
    of_roles = {role.colour for role in plots.ROLES}
    assert colours <= drawn
    assert drawn & of_roles == {plots.BASELINE.colour, plots.TEACHER.colour}


def test_many_classes_are_shown_by_the_largest_gains_and_losses(several: Report) -> None:
    rows = several.classes[several.classes["network"] != "teacher"].to_dict("records")
    many = [
        {**row, "class": f"{row['class']} {copy}", "gain": row["gain"] * (copy + 1)}
        for copy in range(15)
        for row in rows
    ]
    report = replace(several, classes=pd.DataFrame(many))
    table = str(report).partition("ACCURACY BY CLASS")[2].partition("ROBUSTNESS")[0]
    assert len(re.findall(r"^\w+ \d+ ", table, re.MULTILINE)) == 2 * 20
    assert "report.json has all" in table
    assert len(report.to_dict()["tables"]["classes"]) == len(many)
    (drawn,) = (axes for axes in report.figure().axes if axes.get_title() == "The largest gains and losses")
    labels = [label.get_text() for label in drawn.get_yticklabels()]
    assert set(labels) == set(re.findall(r"^(\w+ \d+) ", table, re.MULTILINE))
    twenty = replace(several, classes=pd.DataFrame([row for row in many if row["class"] in set(labels)]))
    assert "Gains and losses by class" in {axes.get_title() for axes in twenty.figure().axes}


@pytest.mark.slow
def test_importing_it_loads_nothing_that_is_not_used_yet() -> None:
    code = "import sys; from kdlib import compare; "
    code += "print([n for n in ('matplotlib', 'pandas', 'scipy', 'torchmetrics', 'torchvision') if n in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


# --- what is refused


def broken() -> nn.Module:
    model = linear(5)
    with torch.no_grad():
        model[1].bias.fill_(math.nan)
    return model


def of_other_classes() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))


def named(*classes: str) -> nn.Module:
    model = linear(6)
    model.classes = classes  # type: ignore[assignment]
    return model


def without(part: str) -> DataModule:
    return replace(DATA, **{part: getattr(DATA, part).select(torch.arange(1))})


ONE, TWO = linear(1), linear(2)
PAIR = {"a": ONE, "b": TWO}
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no students": (lambda: run({}), ValueError, "0 students cannot be compared"),
    "only one": (lambda: run({"a": ONE}), ValueError, "1 students cannot be compared: give two or more"),
    "a list of networks": (lambda: run([ONE, TWO]), TypeError, "networks by name.*got list"),
    "one network": (lambda: run(ONE), TypeError, "networks by name.*got Sequential"),
    "nothing": (lambda: run(None), TypeError, "got NoneType"),
    "a name that is a number": (lambda: run({0: ONE, 1: TWO}), TypeError, "name of a student is a text"),
    "an empty name": (lambda: run({"": ONE, "b": TWO}), ValueError, "1 to 60 characters"),
    "a name of two lines": (lambda: run({"a\nb": ONE, "b": TWO}), ValueError, "one line"),
    "a name without end": (lambda: run({"a" * 61: ONE, "b": TWO}), ValueError, "1 to 60 characters"),
    "one name twice": (lambda: run({"a": ONE, " a": TWO}), ValueError, "Two students are called 'a'"),
    "the teacher's name": (lambda: run({"Teacher": ONE, "b": TWO}), ValueError, "as the tables call the teacher"),
    "a path": (lambda: run({"a": "resnet8-fashion", "b": TWO}), TypeError, "got str. models.load opens a file"),
    "a state": (lambda: run({"a": ONE.state_dict(), "b": TWO}), TypeError, "Run 1.weight of 'a' is a network"),
    "a list with a number": (lambda: run({"a": [ONE, 3], "b": [TWO, ONE]}), TypeError, "Run 1 of 'a'.*got int"),
    "a class": (lambda: run({"a": nn.Linear, "b": TWO}), TypeError, "got type"),
    "an empty list": (lambda: run({"a": [], "b": []}), ValueError, "'a' has no network"),
    "other numbers of runs": (lambda: run({"a": [ONE, TWO], "b": ONE}), ValueError, "not paired: 'b' lacks 1"),
    "other seeds": (
        lambda: run({"a": {0: ONE, 1: TWO}, "b": {0: ONE, 2: TWO}}),
        ValueError,
        "'b' lacks 1 and 'a' lacks 2",
    ),
    "one network as two runs": (lambda: run({"a": [ONE, ONE], "b": [ONE, TWO]}), ValueError, "one and the same"),
    "a copy as another run": (
        lambda: run({"a": [linear(1), linear(1)], "b": [ONE, TWO]}),
        ValueError,
        "Runs 0 and 1 of 'a' give the same logits",
    ),
    "other classes": (lambda: run({"a": ONE, "b": of_other_classes()}), ValueError, "'b' gives 7 logits.*4 classes"),
    "a teacher of other classes": (lambda: run(PAIR, teacher=of_other_classes()), ValueError, "teacher gives 7 logits"),
    "classes in another order": (
        lambda: run({"a": ONE, "b": named("square", "circle", "star", "cross")}),
        ValueError,
        "network 'b' was trained with the same classes in another order",
    ),
    "a teacher with other names": (lambda: run(PAIR, teacher=named("a", "b", "c", "d")), ValueError, "other classes"),
    "other images": (
        lambda: run({"a": models.build("resnet8", num_classes=4, in_channels=3), "b": TWO}),
        ValueError,
        "network 'a' cannot take images of 1 x 8 x 8",
    ),
    "another run of other images": (
        lambda: run({"a": [ONE, models.build("resnet8", num_classes=4, in_channels=3)], "b": [ONE, TWO]}),
        ValueError,
        "network 'a', run 1 cannot take images",
    ),
    "damaged weights": (lambda: run({"a": ONE, "b": broken()}), FloatingPointError, "network 'b'.* not finite"),
    "a damaged teacher": (lambda: run(PAIR, teacher=broken()), FloatingPointError, "teacher's logits are not finite"),
    "a teacher that is a name": (lambda: run(PAIR, teacher="resnet20-fashion"), TypeError, "teacher is an nn.Module"),
    "a split": (lambda: run(PAIR, DATA.test), TypeError, "data is a DataModule.*got InMemoryDataset"),
    "a name of data": (lambda: run(PAIR, "fashion-mnist"), TypeError, "data is a DataModule.*got str"),
    "no test images": (lambda: run(PAIR, without("test")), ValueError, "1 test images"),
    "no validation images": (lambda: run(PAIR, without("validation")), ValueError, "1 validation images"),
    "two channels": (
        lambda: run(
            {n: nn.Sequential(nn.Flatten(), nn.Linear(128, 4)) for n in "ab"},
            DataModule(
                "pairs",
                CLASSES,
                **{
                    part: InMemoryDataset(
                        one.images.repeat(1, 2, 1, 1), one.labels, one.indices, (0.3,) * 2, (0.2,) * 2
                    )
                    for part, one in {p: getattr(DATA, p) for p in ("train", "validation", "test")}.items()
                },
                augmentation=data.NO_AUGMENTATION,
                image_size=8,
            ),
        ),
        ValueError,
        "1 or 3 channels.*corruptions=False",
    ),
    "no images": (lambda: run(PAIR, images=0), ValueError, "images is a whole number"),
    "one image": (lambda: run(PAIR, images=1), ValueError, "images is a whole number of at least 2"),
    "half an image": (lambda: run(PAIR, images=2.5), ValueError, "images is a whole number"),
    "a confidence of one": (lambda: run(PAIR, confidence=1), ValueError, "confidence lies between 0 and 1"),
    "a confidence of NaN": (lambda: run(PAIR, confidence=math.nan), ValueError, "confidence lies between"),
    "a confidence in words": (lambda: run(PAIR, confidence="high"), TypeError, "confidence is a number"),
    "corruptions in words": (lambda: run(PAIR, corruptions="no"), TypeError, "corruptions is True or False"),
    "progress in words": (lambda: run(PAIR, progress="no"), TypeError, "progress is True or False"),
    "an unknown device": (lambda: run(PAIR, device="gpu7"), ValueError, "gpu7"),
    "an unknown precision": (lambda: run(PAIR, precision="int3"), ValueError, "int3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compared_is_refused(name: str) -> None:
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("folder", [3, None, ""])
def test_a_report_is_saved_to_a_path(folder: Any, single: Report) -> None:
    with pytest.raises(TypeError, match="folder is the path"):
        single.save(folder)


# --- the command


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and folders of untrained students of Fashion-MNIST."""
    root = tmp_path_factory.mktemp("shelf")
    for folder, first in (("hard", 0), ("kd", 10), ("others", 20)):
        for seed in range(2):
            name = f"seed{seed}" if folder != "others" else f"run{seed}"
            model = models.build("article-student", num_classes=10, in_channels=1, seed=first + seed)
            models.save(model, root / folder / f"{name}.safetensors")
    (root / "empty").mkdir()
    (root / "empty" / "notes.txt").write_text("none")
    models.save(models.build("article-student", num_classes=3, in_channels=1, seed=0), root / "three.safetensors")
    models.save(models.build("resnet8", num_classes=10, in_channels=3, seed=0), root / "colour.safetensors")
    (root / "broken.safetensors").write_bytes(b"no tensors")
    (root / "pickle.pt").write_bytes(b"\x80\x04")
    model = models.build("article-student", num_classes=10, in_channels=1, seed=30)
    models.save(model, root / "lr=0.1.safetensors")
    models.save(model, root / "named.safetensors", classes=[f"class {number}" for number in range(10)])
    models.save(model, root / "teacher.safetensors")
    return root


@pytest.fixture(scope="module")
def short() -> Iterator[DataModule]:
    """The command reads 10,000 test images; for these tests the first 60 will do."""
    whole, real = data.load("fashion-mnist"), data.load
    few = torch.arange(60)
    short = replace(whole, test=whole.test.select(few), validation=whole.validation.select(few))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda name, **options: short if name == "fashion-mnist" else real(name, **options))
        yield short


def call(*arguments: Any) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kdlib", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


QUICK = ("--device", "cpu", "--precision", "fp32", "--quiet")


@pytest.mark.slow
def test_the_command_pairs_the_files_of_folders(
    shelf: Path, short: DataModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    students, teacher = (shelf / "hard", f"distilled={shelf / 'kd'}"), shelf / "lr=0.1.safetensors"
    options = ("--teacher", teacher, "--images", "30", "--out", out, "--json", *QUICK)
    assert call("compare", *students, *options) == 0
    shown = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    loaded = {
        name: {f"seed{seed}": models.load(shelf / folder / f"seed{seed}.safetensors") for seed in range(2)}
        for name, folder in (("hard", "hard"), ("distilled", "kd"))
    }
    expected = run(loaded, short, teacher=models.load(teacher), images=30)
    assert shown == json.loads(json.dumps(expected.to_dict()))
    assert json.loads((out / "report.json").read_text()) == shown
    assert (out / "report.md").read_text("utf-8") == expected.to_markdown()


def test_what_macos_writes_beside_the_files_of_a_folder_is_no_student(shelf: Path, tmp_path: Path) -> None:
    for name in ("hard", "kd"):
        shutil.copytree(shelf / name, tmp_path / name)
        (tmp_path / name / "._seed0.safetensors").write_bytes(b"\x00\x05\x16\x07")
    found = read_students([str(tmp_path / name) for name in ("hard", "kd")])
    assert {name: list(runs) for name, runs in found.items()} == {name: ["seed0", "seed1"] for name in ("hard", "kd")}


def test_the_command_prints_the_report_and_writes_nothing_unasked(
    shelf: Path, short: DataModule, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--no-corruptions", "--images", "20", *QUICK)
    assert call("compare", shelf / "hard" / "seed0.safetensors", shelf / "kd" / "seed0.safetensors", *options) == 0
    shown = capsys.readouterr().out
    assert "20 of 60 test images" in shown
    assert "hard/seed0" in shown  # the files have one name, so their folders are named, too
    assert "kd/seed0" in shown
    assert "ROBUSTNESS" not in shown
    assert not list(tmp_path.iterdir())


def test_a_path_may_have_an_equals_sign(shelf: Path, short: DataModule, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--no-corruptions", *QUICK)
    assert call("compare", shelf / "lr=0.1.safetensors", f"x={shelf / 'lr=0.1.safetensors'}", *options) == 0
    assert "lr=0.1 and x say the same of every image" in capsys.readouterr().out


def test_the_command_shows_a_progress_bar_unless_it_is_quiet(
    shelf: Path, short: DataModule, capsys: pytest.CaptureFixture[str]
) -> None:
    students = [shelf / "hard" / f"seed{seed}.safetensors" for seed in range(2)]
    for quiet in (False, True):
        assert call("compare", *students, "--no-corruptions", *QUICK[:4], *["--quiet"] * quiet) == 0
        assert ("img/s" in capsys.readouterr().err) != quiet


def test_students_are_the_same_networks_where_they_are_so_at_each_seed() -> None:
    other_order, exchanged = {1: TWO, 0: ONE}, {0: TWO, 1: ONE}
    students = {"a": {0: ONE, 1: TWO}, "other order": other_order, "exchanged": exchanged}
    assert run(students, images=20, corruptions=False).same == (("a", "other order"),)
    assert run({"a": {0: ONE}, "b": {1: linear(1)}}, images=20, corruptions=False).same == (("a", "b"),)


S, K = "hard/seed0.safetensors", "kd/seed0.safetensors"
COMMANDS: dict[str, tuple[list[str], str]] = {
    "one student": ([S], "give two or more"),
    "a shipped name that is misspelt": ([S, "resnet8-fashon"], "Did you mean 'resnet8-fashion'"),
    "a missing file": ([S, "nothing.safetensors"], "no file nothing.safetensors"),
    "a missing folder": ([S, "kd/nothing"], "no trained model named 'kd/nothing'"),
    "an empty folder": ([S, "empty"], "empty holds no .safetensors file"),
    "a broken file": ([S, "broken.safetensors"], "not a readable safetensors file"),
    "a pickle": ([S, "pickle.pt"], "not a readable safetensors file"),
    "a file twice": ([S, S], "Two students are called 'hard/seed0'"),
    "a label twice": ([f"x={S}", f"x={K}"], "Two students are called 'x'. .*NAME=PATH"),
    "a label without a path": ([S, "x="], "named as NAME=PATH"),
    "a path without a label": ([S, f"={K}"], "named as NAME=PATH"),
    "an empty argument": ([S, ""], "named as NAME=PATH"),
    "a label of the teacher": ([S, f"teacher={K}"], "as the tables call the teacher"),
    "a file that is called teacher": ([S, "teacher.safetensors"], "as the tables call the teacher"),
    "a label of 100 letters": ([S, f"{'x' * 100}={K}"], "1 to 60 characters"),
    "other file names": (["hard", "others"], "not paired: 'others' lacks seed0, seed1 and 'hard' lacks run0, run1"),
    "a folder and a file": (["hard", K], "not paired: 'seed0' lacks seed1"),
    "other classes": ([S, "three.safetensors"], "network 'three' gives 3 logits, but"),
    "other names of classes": ([S, "named.safetensors"], "trained with other classes"),
    "images in colour": ([S, "colour.safetensors"], "'colour' cannot take images of 1 x 28 x 28"),
    "a teacher that is not there": ([S, K, "--teacher", "nobody"], "no trained model named 'nobody'"),
    "a teacher of other classes": ([S, K, "--teacher", "three.safetensors"], "teacher gives 3 logits"),
    "a teacher in colour": ([S, K, "--teacher", "colour.safetensors"], "teacher cannot take images"),
    "a teacher that is a folder": ([S, K, "--teacher", "hard"], "no trained model named 'hard'"),
    "unknown data": ([S, K, "--data", "fashion"], "Did you mean 'fashion-mnist'"),
    "data that are not there": ([S, K, "--data", "imagefolder:nothing"], "nothing"),
    "one image": ([S, K, "--images", "1"], "--images"),
    "images in words": ([S, K, "--images", "many"], "--images"),
    "an unknown device": ([S, K, "--device", "gpu7"], "gpu7"),
    "an unknown precision": ([S, K, "--precision", "int3"], "int3"),
    "an unknown option": ([S, K, "--seeds", "3"], "--seeds"),
    "an earlier report": ([S, K, "--out", "earlier"], "earlier run .report.md.*--overwrite"),
    "an out that is a file": ([S, K, "--out", "three.safetensors"], "not a folder"),
    "overwrite without out": ([S, K, "--overwrite"], "--overwrite replaces what is in --out"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bad_command_ends_in_a_sentence(
    name: str, shelf: Path, short: DataModule, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, message = COMMANDS[name]
    (shelf / "earlier").mkdir(exist_ok=True)
    (shelf / "earlier" / "report.md").write_text("mine")
    monkeypatch.chdir(shelf)
    assert call("compare", *arguments, *([] if "--device" in arguments else ["--device", "cpu"]), "--quiet") == 2
    shown = capsys.readouterr()
    assert re.search(message, re.sub(r"[\s│]+", " ", shown.err)), shown.err
    assert "Traceback" not in shown.err
    assert "KDLIB_TRACEBACK" not in shown.err
    assert not shown.out
    if shown.err.startswith("kdlib: "):  # else it is typer's box about an option
        assert shown.err.count("\n") == 1
    else:
        assert "Usage" in shown.err
    assert (shelf / "earlier" / "report.md").read_text() == "mine"


def test_overwrite_replaces_an_earlier_report_and_a_failure_keeps_it(
    shelf: Path, short: DataModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.md").write_text("mine")
    options = ("--no-corruptions", "--out", tmp_path, "--overwrite", *QUICK)
    assert call("compare", shelf / S, shelf / "three.safetensors", *options) == 2
    assert (tmp_path / "report.md").read_text() == "mine"
    assert call("compare", shelf / S, shelf / K, *options) == 0
    assert (tmp_path / "report.md").read_text().startswith("# hard/seed0 against kd/seed0")
    assert set(os.listdir(tmp_path)) == set(FILES)


def test_a_student_may_lie_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell expands the ~ behind NAME=."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    model = models.build("article-student", num_classes=10, in_channels=1, seed=0)
    models.save(model, tmp_path / "seeds" / "0.safetensors")
    assert list(read_students(["a=~/seeds", "b=~/seeds/0.safetensors"])["a"]) == ["0"]
