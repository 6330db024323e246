"""The capstone's checker: a good report is accepted, and a fault is refused by a sentence that names it."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from course import capstone
from course.capstone import checks, cost, numbers
from course.capstone.__main__ import main
from course.capstone.evidence import load_study
from kdlib import models
from kdlib.study import plans
from kdlib.study.method_specs import METHODS, Settings
from kdlib.study.plans import Budget
from kdlib.study.predictions import PredictionsFile
from kdlib.study.runs_file import RUN_COLUMNS, RunsFile

EXAMPLE = Path(capstone.__file__).parent / "example" / "report.md"
COMMAND = (
    "kdlib study --data imagefolder@32:pictures --method label-smoothing --method kd --method shuffled "
    "--teacher runs/teacher/model.safetensors --student resnet8 --images 600 --epochs 8 --views 2 --defaults "
    "--out runs/study --quiet"
)
BUDGET = Budget("imagefolder@32:pictures", "resnet8", "runs/teacher/model.safetensors", 600, 8, 2)
GAINS = {"hard": 0.0, "label-smoothing": 0.004, "kd": 0.03, "shuffled": -0.02}
IMAGES = 400
CHECKED = re.compile(r"every claim that can be checked holds")


def write_study(folder: Path, seeds: int = 5, methods: tuple[str, ...] = tuple(GAINS), budget: Budget = BUDGET) -> Path:
    """Rows, answers and sessions of a study that nobody had to train for."""
    plan = plans.of_methods(methods[1:])
    path = budget.path("methods", folder)
    labels = torch.arange(IMAGES) % 10
    answers = PredictionsFile(path)
    with RunsFile(path, RUN_COLUMNS).open() as file:
        for config in plan.run_configs(plan.variants({}), range(seeds), {}, optimizer=budget.optimizer):
            chance = random.Random(f"{config.key}")
            wrong = round(IMAGES * (0.25 - GAINS[config.method] + 0.008 * chance.gauss(0, 1)))
            predicted = labels.clone()
            chosen = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(chance.randrange(10**6)))[:wrong]
            predicted[chosen] = (labels[chosen] + 1) % 10
            row = config.to_row(budget) | {
                "device": "cpu, float32",
                "threads": 1,
                "fingerprint": config.fingerprint(budget, "x"),
            }
            accuracy = (predicted == labels).double().mean().item()
            row |= {"validation_accuracy": accuracy, "test_accuracy": accuracy, "teacher_accuracy": 0.79}
            row |= {"agreement": 0.8, "calibration_error": 0.1, "extra_parameters": 0}
            row |= {"seconds": 9.0, "seconds_per_epoch": 1.0}
            answers.add(row["fingerprint"], predicted, labels)
            file.append(row)
        session = {
            "command": COMMAND,
            "started": "2026-11-26",
            "machine": {},
            "rows": [1, len(file.rows)],
            "hours": 0.1,
        }
        content = {"runs": len(file.rows), "hours": 0.1, "sessions": [session]}
    path.with_suffix(".json").write_text(json.dumps(content))
    return path


def write_evidence(folder: Path, **study: Any) -> Path:
    """All files of a capstone and a report about them that has no fault; returns the report."""
    (folder / "runs" / "study").mkdir(parents=True)
    rows = write_study(folder / "runs" / "study", **study)
    accuracy = float(load_study(rows).runs("kd" if "kd" in GAINS else "hard")[0]["test_accuracy"])
    row = load_study(rows).runs("kd")[0]
    settings, batch = Settings.from_row(row), Budget.from_row(row).batch_size
    job = {
        **{"student": "resnet8", "images": 600, "epochs": 8, "seed": 0, "method": "logit", "teacher": row["teacher"]},
        **{"views": int(row["views"]), "temperature": settings.temperature, "alpha": settings.alpha},
        "recipe": vars(settings.recipe(batch, row["optimizer"])),
    }
    sizes = {"student_parameters": 78_042, "teacher_parameters": 272_474}
    student = {"job": job, "student_accuracy": accuracy, "teacher_accuracy": 0.79, "agreement": 0.8, **sizes}
    compared = {"float_accuracy": accuracy, "images": IMAGES}
    export = {
        "split": "validation",
        "formats": [
            {"format": "onnx", "bytes": 330_123, "accuracy": accuracy, "agreement": 1.0, **compared},
            {"format": "onnx-int8", "bytes": 115_456, "accuracy": 0.7725, "agreement": 0.9875, **compared},
        ],
    }
    cost = {
        "teacher": {"parameters": 272_474, "macs": 40_813_184, "bytes": 1_100_000, "milliseconds": 2.345},
        "student": {"parameters": 78_042, "macs": 12_501_632, "bytes": 320_000, "milliseconds": 0.987},
        "machine": {"processor": "a processor"},
    }
    for name, content in {"student.json": student, "export.json": export, "cost.json": cost}.items():
        (folder / "runs" / name).write_text(json.dumps(content))
    files = {"study": rows, **{name: folder / "runs" / f"{name}.json" for name in ("student", "export", "cost")}}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    assert main(["draft", *options, "--out", str(folder / "report.md")]) == 0
    report = folder / "report.md"
    report.write_text(with_words(report.read_text(), load_study(rows)))
    return report


def with_words(text: str, results: Any) -> str:
    """A draft with words in place of every TODO."""
    gain = results.gain("kd") if "kd" in results.methods else results.gain(results.methods[0])
    said = f"kd {gain.verdict}: {100 * gain.mean:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})."
    limits = "Other pictures, another teacher and other settings are not covered, and neither is a longer training. "
    words = {
        "title: TODO": "title: A small network for clothes",
        "# TODO: the same title": "# A small network for clothes",
        "TODO: what is the student for, on which device, and what would make it good enough? One or two sentences.": (
            "It sorts clothes on a board with 256 kB of flash; 75 % right would be enough."
        ),
        "- origin: TODO": "- origin: Fashion-MNIST, by Zalando, written to a folder as files",
        "- licence: TODO": "- licence: MIT",
        "- split: TODO": "- split: that of the data set; no product is on both sides, as far as its authors say",
        "; TODO: how many for validation, how many classes": "; 1,000 for validation, 10 classes",
        ", TODO: what was it trained on?": ", trained on 3,000 pictures of the same folder",
        "TODO: for each method the verdict, with gain and interval. What do the controls say?": (
            f"Over hard labels, {said} The controls gain less."
        ),
        "TODO: what do these rows not cover?": limits * 2,
    }
    for old, new in words.items():
        assert old in text, old
        text = text.replace(old, new)
    assert "TODO" not in text
    return text


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_evidence(tmp_path_factory.mktemp("capstone"))


def faults(path: Path) -> list[str]:
    report = capstone.read_report(path)
    return capstone.check(report, capstone.read_evidence(report))


def copy_of(report: Path, folder: Path) -> Path:
    shutil.copytree(report.parent, folder, dirs_exist_ok=True)
    return folder / report.name


def test_a_good_report_is_accepted(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert faults(good) == []
    assert main(["check", str(good)]) == 0
    assert CHECKED.search(" ".join(capsys.readouterr().out.split()))


def cell(text: str, method: str, column: int) -> str:
    """A cell of the table of results."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {method} |"))
    return row.split("|")[column + 1].strip()


def put(method: str, column: int, value: str) -> Callable[[str], str]:
    """A change of a report: another text in a cell of the table of results."""

    def change(text: str) -> str:
        row = next(line for line in text.splitlines() if line.startswith(f"| {method} |"))
        cells = row.split("|")
        cells[column + 1] = f" {value} "
        return text.replace(row, "|".join(cells))

    return change


def replaced(old: str, new: str) -> Callable[[str], str]:
    """A change of a report: one text for another."""

    def change(text: str) -> str:
        assert old in text, old
        return text.replace(old, new)

    return change


def without_line(beginning: str) -> Callable[[str], str]:
    """A change of a report: a line that is left out."""

    def change(text: str) -> str:
        kept = [line for line in text.splitlines() if not line.startswith(beginning)]
        assert len(kept) < len(text.splitlines())
        return "\n".join(kept) + "\n"

    return change


# A change of the good report, and what the one fault is that must be named.
FAULTY: dict[str, tuple[Callable[[str], str], str]] = {
    "no interval": (put("kd", 4, ""), r"^Intervals: the gain of kd has no interval"),
    "an interval from nowhere": (put("kd", 4, "+2.90 to +3.10"), r"^Intervals: .* does not follow from the rows"),
    "no gain": (put("kd", 3, ""), r"^Intervals: there is no gain of kd"),
    "a gain in whole points": (put("kd", 3, "+3"), r"^Intervals: the gain of kd, \+3, needs a decimal"),
    "an interval in whole points": (
        put("kd", 4, "+1 to +5"),
        r"^Intervals: the interval of kd, \+1 to \+5, needs a decimal",
    ),
    "another gain": (put("kd", 3, "+9.99"), r"^Intervals: the gain of kd, \+9.99 points, is not what the rows say"),
    "the control is left out": (
        without_line("| shuffled |"),
        r"^Controls: the control shuffled was run, and it is not in",
    ),
    "a method that was not run": (
        lambda text: text.replace("| kd |", "| dkd | 5 | 80.0 | +1.0 | +0.1 to +2.0 | BEATS |\n| kd |", 1),
        r"^Controls: the table of results has 'dkd', which the study did not run",
    ),
    "other seeds": (put("kd", 1, "10"), r"^Seeds: for kd the report has 10 seeds, and the files have 5"),
    "no decimals": (put("hard", 2, "75"), r"^Accuracies: the accuracy of hard, 75, needs a decimal"),
    "another accuracy": (
        put("hard", 2, "79.99"),
        r"^Accuracies: the accuracy of hard, 79.99 %, is not what the rows say",
    ),
    "another verdict": (put("shuffled", 5, "BEATS"), r"^Verdicts: the verdict of shuffled is \w+, by its interval"),
    "a verdict of one's own": (
        replaced("The controls gain less.", "And label-smoothing LOSES, clearly."),
        r"^Verdicts: the conclusion says LOSES of label-smoothing",
    ),
    "too large a word": (
        replaced("The controls gain less.", "This proves that teaching works."),
        r"^Verdicts: the conclusion says 'proves'",
    ),
    "a number of no row": (
        replaced("The controls gain less.", "In the best run it gains 6.4 points."),
        r"^Numbers: the conclusion has 6.4, which no file gives",
    ),
    "the test set": (replaced("- test set: read once", "- test set: read"), r"^Test set: the section Method has no"),
    "settings that were not chosen": (
        replaced("- settings: the defaults, none was tuned", "- settings: tuned on validation"),
        r"^Test set: the settings are said to be chosen, and the rows say that they are the defaults",
    ),
    "no licence": (replaced("- licence: MIT", "- licence: unknown"), r"^Data: there is no '- licence"),
    "no origin": (without_line("- origin"), r"^Data: there is no '- origin"),
    "no split": (without_line("- split"), r"^Data: there is no '- split"),
    "other pictures": (replaced("600 for training", "6,000 for training"), r"^Data: .* does not name the 600 training"),
    "no latency": (replaced("| 0.99 |", "| |"), r"^Cost: the latency of the student is missing"),
    "another latency": (replaced("| 0.99 |", "| 0.50 |"), r"^Cost: the latency of the student, 0.50, is not what"),
    "no teacher's costs": (without_line("| teacher |"), r"^Cost: the table of costs has no row 'teacher'"),
    "another size": (replaced("78,042", "78,000"), r"^Cost: the parameters of the student, 78,000"),
    "another file": (replaced("115,456", "100,000"), r"^Cost: the bytes of onnx-int8 is 100,000"),
    "another command": (replaced("--epochs 8", "--epochs 80"), r"^Repeat: the section Repeat lacks the command"),
    "no limits": (
        lambda text: re.sub(r"## Limits\n.*?## Repeat", "## Limits\n\nNone.\n\n## Repeat", text, flags=re.DOTALL),
        r"^Limits: the section Limits is very short",
    ),
    "a word that is left": (replaced("The controls gain less.", "TODO"), r"^Complete: TODO is left in Conclusion"),
    "a title that is left": (
        lambda text: re.sub("^title: .*", "title: TODO", text, count=1, flags=re.MULTILINE),
        r"^Complete: TODO is left in the title",
    ),
    "a heading that is left": (
        lambda text: re.sub("^# .*", "# TODO: the same title", text, count=1, flags=re.MULTILINE),
        r"^Complete: TODO is left in the heading",
    ),
    "two pages": (replaced("The controls gain less.", "The controls gain less. " * 300), r"^Complete: It has .* words"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTY)
def test_one_fault_is_refused_and_named(name: str, good: Path, tmp_path: Path) -> None:
    change, message = FAULTY[name]
    path = copy_of(good, tmp_path)
    path.write_text(change(path.read_text()))
    found = faults(path)
    assert len(found) == 1, found
    assert re.search(message, found[0]), found


def with_conclusion(text: str, *kinds: str) -> list[str]:
    """The faults of another conclusion of the shipped example, in which kd LOSES; kinds: default, its verdicts."""
    report = capstone.read_report(EXAMPLE)
    changed = replace(report, sections={**report.sections, "Conclusion": f"{text}\n"})
    found = capstone.check(changed, capstone.read_evidence(report))
    return [one for one in found if one.startswith(kinds or ("Verdicts",))]


@pytest.mark.parametrize(
    "text",
    [
        "kd BEATS hard labels, and the control shuffled LOSES.",
        "label-smoothing is INCONCLUSIVE, kd BEATS hard labels.",
        "kd BEATS hard labels (INCONCLUSIVE: label-smoothing).",
        "label smoothing is INCONCLUSIVE, and kd BEATS hard labels.",
        "kd BEATS hard labels: with kd one gets further.",
        "Unlike shuffled, kd BEATS hard labels.",
        "kd BEATS hard labels, and the controls do not.",
        "The controls teach nothing, and kd BEATS hard labels.",
    ],
)
def test_a_wrong_verdict_is_found_beside_other_methods_and_verdicts(text: str) -> None:
    (fault,) = with_conclusion(text)
    assert re.match(r"Verdicts: the conclusion says BEATS of .*\bkd\b", fault)


@pytest.mark.parametrize(
    "text",
    [
        "kd LOSES, shuffled LOSES and label-smoothing is INCONCLUSIVE.",
        "kd, unlike label-smoothing, LOSES.",
        "kd LOSES, as a kind of label smoothing may.",
        "kd LOSES to hard labels; label smoothing is INCONCLUSIVE.",
        "Label smoothing is INCONCLUSIVE (+1.1 points, -1.0 to +3.2) and the shuffled teacher LOSES. kd LOSES too.",
        "Both kd and shuffled, the control: LOSES.",
        "Neither kd nor shuffled BEATS hard labels. So kd LOSES.",
    ],
)
def test_right_verdicts_may_stand_in_one_sentence(text: str) -> None:
    assert with_conclusion(text) == []


def test_the_verdicts_of_the_shipped_example_are_right() -> None:
    assert with_conclusion(capstone.read_report(EXAMPLE).sections["Conclusion"]) == []


def test_the_best_seed_is_recognized(good: Path, tmp_path: Path) -> None:
    path = copy_of(good, tmp_path)
    best = max(load_study(path.parent / "runs" / "study" / study_name(path)).score("kd").by_seed.values())
    path.write_text(put("kd", 2, f"{100 * best:.2f}")(path.read_text()))
    assert any("is the best seed; the mean of all is" in fault for fault in faults(path))


def study_name(report: Path) -> str:
    return next((report.parent / "runs" / "study").glob("methods-*.csv")).name


def test_an_uncorrected_interval_is_recognized(good: Path, tmp_path: Path) -> None:
    from course.capstone.checks import _other_interval

    path = copy_of(good, tmp_path)
    evidence = capstone.read_evidence(capstone.read_report(path))
    for comparisons, over_seeds, words in ((1, False, "a single comparison"), (3, True, "over seeds alone")):
        low, high = (100 * value for value in _other_interval("kd", evidence, comparisons, over_seeds))
        path.write_text(put("kd", 4, f"{low:+.2f} to {high:+.2f}")(good.read_text()))
        found = [fault for fault in faults(path) if fault.startswith("Intervals")]
        assert len(found) == 1
        assert words in found[0]


def test_digits_may_be_fewer_and_minus_signs_of_any_kind(good: Path, tmp_path: Path) -> None:
    path = copy_of(good, tmp_path)
    text = path.read_text()
    for method in ("kd", "shuffled", "label-smoothing"):
        gain = load_study(path.parent / "runs" / "study" / study_name(path)).gain(method)
        shown = f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}".replace("-", "−")
        text = put(method, 4, f"[{shown}]")(text)
        text = put(method, 3, f"{100 * gain.mean:+.1f}".replace("-", "−"))(text)
        text = put(method, 5, f"**{gain.verdict}**")(text)
    path.write_text(text)
    assert faults(path) == []


@pytest.mark.parametrize(
    "table",
    [
        "| class | accuracy % |\n| --- | --: |\n| boot | 91.2 |\n",
        "| method | agreement % |\n| --- | --: |\n| kd | 80.0 |\n",
    ],
    ids=["by class", "by another measure"],
)
def test_a_further_table_may_stand_in_the_results(table: str, good: Path) -> None:
    assert changed_report(good, "Results", "| method |", f"{table}\nAnd:\n\n| method |") == []
    last = good.read_text().split("## Results")[1].split("\n## ")[0].rstrip().splitlines()[-1]
    assert changed_report(good, "Results", last, f"{last}\n\n{table}") == []


def test_the_goal_of_the_question_may_stand_in_the_conclusion(good: Path) -> None:
    report = capstone.read_report(good)
    evidence = capstone.read_evidence(report)
    assert (
        capstone.check(report.changed("Conclusion", "gain less.", "gain less. The 75 % are reached."), evidence) == []
    )
    assert len(capstone.check(report.changed("Conclusion", "gain less.", "The 85 % are reached."), evidence)) == 1
    with pytest.raises(ValueError, match="is not in the section Limits"):
        report.changed("Limits", "no such text", "")


def twice(line: str, false: str) -> Callable[[str], str]:
    """The text with a false line before the one that begins so."""
    return lambda text: re.sub(rf"^(?={re.escape(line)})", f"{false}\n", text, count=1, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("section", "line", "false", "message"),
    [
        ("Results", "| kd |", "| kd | 5 | 70.00 | +2.61 | +0.40 to +4.80 | BEATS |", "two rows of kd"),
        ("Cost", "| teacher |", "| teacher | 1 | 1 | 1 | 0.1 |", "two rows of teacher"),
        ("Cost", "| onnx |", "| onnx | 1 | 99.9 |", "two rows of onnx"),
    ],
)
def test_a_row_that_stands_twice_is_found(section: str, line: str, false: str, message: str) -> None:
    report = capstone.read_report(EXAMPLE)
    changed = twice(line, false)(report.sections[section])
    assert changed != report.sections[section]
    report = replace(report, sections={**report.sections, section: changed})
    found = capstone.check(report, capstone.read_evidence(report))
    assert any(message in one for one in found), found


def test_a_section_that_stands_twice_is_found(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "twice.md"
    path.write_text(good.read_text().replace("## Conclusion", "## Conclusion\n\nkd is better.\n\n## Conclusion"))
    with pytest.raises(ValueError, match="has the section ## Conclusion twice"):
        capstone.read_report(path)


@pytest.mark.parametrize(
    ("said", "accepted"),
    [
        ("read once, after all was chosen; nothing was chosen by it", True),
        ("once, at the end of each run", True),
        ("read once per run, at its end, after everything was chosen", True),
        ("read once a run", True),
        ("read only once", True),
        ("read once in every epoch", False),
        ("read not just once", False),
        ("read more than once, and the best epoch was chosen by it", False),
        ("read after every epoch, not once", False),
        ("read once an epoch", False),
        ("read once per epoch", False),
        ("at least once", False),
    ],
)
def test_the_test_set_is_read_once_and_not_more_often(said: str, accepted: bool) -> None:
    report = capstone.read_report(EXAMPLE)
    line = next(line for line in report.sections["Method"].splitlines() if line.startswith("- test set:"))
    text = re.sub(r"- test set:.*(?:\n[ \t]+\S.*)*", f"- test set: {said}", report.sections["Method"])
    assert line not in text
    report = replace(report, sections={**report.sections, "Method": text})
    found = capstone.check(report, capstone.read_evidence(report))
    assert any("'- test set: read once" in one for one in found) != accepted, found


def test_a_table_of_costs_may_have_markdown_in_its_cells(good: Path) -> None:
    report = capstone.read_report(EXAMPLE)
    marked = {"| teacher |": "| **teacher** |", "| onnx |": "| `onnx` |", "| kd |": "| `kd` |", "LOSES |": "`LOSES` |"}
    sections = dict(report.sections)
    for old, new in marked.items():
        for name in ("Results", "Cost"):
            sections[name] = sections[name].replace(old, new)
    assert all(any(new in text for text in sections.values()) for new in marked.values())
    report = replace(report, sections=sections)
    assert capstone.check(report, capstone.read_evidence(report)) == []


def test_commands_may_have_comments_and_prompts(good: Path, tmp_path: Path) -> None:
    path = copy_of(good, tmp_path)
    text = path.read_text()
    assert "\nkdlib study" in text
    path.write_text(text.replace("\nkdlib study", "\n## the study\n$ kdlib study"))
    assert faults(path) == []


# What the files say, whatever the report says.


def test_a_study_without_a_control_is_refused(tmp_path: Path) -> None:
    report = write_evidence(tmp_path, methods=("hard", "kd"))
    assert [fault for fault in faults(report) if "the study has no control" in fault]


def test_too_few_seeds_are_refused(tmp_path: Path) -> None:
    found = faults(write_evidence(tmp_path, seeds=3))
    assert len(found) == 1
    assert "the study has 3 seeds, and a verdict takes 5 at least" in found[0]


def test_a_second_study_of_the_same_test_set_is_found(good: Path, tmp_path: Path) -> None:
    path = copy_of(good, tmp_path)
    write_study(path.parent / "runs" / "study", budget=Budget(BUDGET.data, "resnet20", BUDGET.teacher, 600, 8, 2))
    found = faults(path)
    assert len(found) == 1
    assert "the test set was read by another study, too: methods-resnet20-model-600.csv" in found[0]


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("export.json", lambda c: c.update(split="test"), "compared on the test set. Export again with --validation"),
        (
            "export.json",
            lambda c: [one.update(float_accuracy=0.9) for one in c["formats"]],
            "the exported network is right on 90.00 % of 400 validation pictures, and that student of the study",
        ),
        ("student.json", lambda c: c.update(student_accuracy=0.9), "is no student of the study"),
        ("student.json", lambda c: c["job"].update(seed=7), "is no student of the study"),
        ("student.json", lambda c: c["job"].update(epochs=80), "is no student of the study"),
        ("student.json", lambda c: c.update(student_parameters=5), "another size than the student that was trained"),
    ],
)
def test_files_that_belong_to_something_else_are_found(
    file: str, change: Callable[[dict[str, Any]], Any], message: str, good: Path, tmp_path: Path
) -> None:
    path = copy_of(good, tmp_path)
    change_json(path.parent / "runs" / file, change)
    found = faults(path)
    assert len(found) == 1, found
    assert message in found[0]


def test_every_session_belongs_into_the_report(good: Path, tmp_path: Path) -> None:
    path = copy_of(good, tmp_path)
    study = path.parent / "runs" / "study" / study_name(path).replace(".csv", ".json")
    change_json(study, lambda c: c["sessions"].append(c["sessions"][0] | {"command": f"{COMMAND} --seeds 10"}))
    found = faults(path)
    assert len(found) == 1
    assert "--seeds 10" in found[0]


def test_tuned_settings_need_their_trials(good: Path, tmp_path: Path) -> None:
    path = copy_of(good, tmp_path)
    study = path.parent / "runs" / "study" / study_name(path)
    label = "resnet8, 600 images, 8 epochs, 2 tuning seeds"
    study.write_text(study.read_text().replace(",defaults,", f',"{label}",'))
    text = path.read_text()
    assert any("Say that this was done on validation pictures" in fault for fault in faults(path))
    path.write_text(text.replace("the defaults, none was tuned", "tuned on validation pictures, 22 trials a method"))
    assert any("choose-....csv, is not beside the study" in fault for fault in faults(path))
    study.with_name(study.name.replace("methods", "choose")).write_text("")
    assert faults(path) == []


# What cannot be read.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.removeprefix("---"), "has no front matter"),
        (without_line("cost:"), "does not say: cost"),
        (replaced("## Limits", "## Outlook"), "has no section ## Limits"),
        (replaced("runs/cost.json", "runs/costs.json"), "There is no file"),
        (replaced("runs/cost.json", "runs/export.json"), "has no teacher, student, machine"),
        (replaced("methods-resnet8-model-600.csv", "nothing.csv"), "There is no file"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    change: Callable[[str], str], message: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy_of(good, tmp_path)
    path.write_text(change(path.read_text()))
    assert main(["check", str(path)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_report_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none.md")]) == 2
    assert "none.md" in capsys.readouterr().err


def test_the_command_line_lists_the_faults(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy_of(good, tmp_path)
    path.write_text(FAULTY["no licence"][0](path.read_text()))
    assert main(["check", str(path)]) == 1
    out = capsys.readouterr().out
    assert "1 fault\n" in out
    assert all(len(line) <= 88 for line in out.splitlines()[1:])


# The helpers.


def test_a_draft_is_refused_until_it_has_words_and_never_replaced(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy_of(good, tmp_path)
    files = {"study": path.parent / "runs" / "study" / study_name(path)}
    files |= {name: path.parent / "runs" / f"{name}.json" for name in ("student", "export", "cost")}
    options = [word for name, one in files.items() for word in (f"--{name}", str(one))]
    assert main(["draft", *options, "--out", str(tmp_path / "new.md")]) == 0
    assert main(["check", str(tmp_path / "new.md")]) == 1
    places = "the title, the heading, Question, Data, Method, Conclusion, Limits"
    assert f"TODO is left in {places}" in " ".join(capsys.readouterr().out.split())
    assert main(["draft", *options, "--out", str(path)]) == 2
    assert "is there already, and its words are yours" in capsys.readouterr().err


def test_a_draft_names_files_on_another_drive_by_their_whole_paths(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def relpath(path: object, start: object) -> str:  # as on Windows
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    path = copy_of(good, tmp_path)
    files = {"study": path.parent / "runs" / "study" / study_name(path)}
    files |= {name: path.parent / "runs" / f"{name}.json" for name in ("student", "export", "cost")}
    options = [word for name, one in files.items() for word in (f"--{name}", str(one))]
    monkeypatch.setattr(os.path, "relpath", relpath)
    assert main(["draft", *options, "--out", str(tmp_path / "new.md")]) == 0
    written = capstone.read_report(tmp_path / "new.md")
    assert {name: written.file(name) for name in files} == files
    assert main(["check", str(tmp_path / "new.md")]) == 1  # the words are missing, the files are not
    assert "TODO" in capsys.readouterr().out


def test_the_command_that_repeats_a_student_has_the_settings_of_its_row(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = str(good.parent / "runs" / "study" / study_name(good))
    assert main(["repeat", study, "--method", "kd", "--seed", "3"]) == 0
    command = capsys.readouterr().out
    rate = Settings().recipe(32).learning_rate
    for part in ("--method logit", "--temperature 4", "--alpha 0.1", "--batch-size 32", f"--learning-rate {rate}"):
        assert part in command
    assert "--seed 3" in command
    assert "--device cpu --precision fp32 --cache " in command  # of the row, and in 16 bits as in a study
    assert main(["repeat", study, "--method", "shuffled"]) == 2
    assert "cannot be given to kdlib distill" in capsys.readouterr().err
    assert main(["repeat", study, "--seed", "9"]) == 2
    assert "has no seed 9" in capsys.readouterr().err


def test_a_study_with_adamw_is_drafted_and_repeated_with_adamw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = str(write_study(tmp_path, budget=replace(BUDGET, optimizer="adamw")))
    assert main(["repeat", study, "--method", "kd", "--seed", "3"]) == 0
    command = capsys.readouterr().out
    rate = METHODS["kd"].start_with("adamw").recipe(32, "adamw").learning_rate
    assert f"--optimizer adamw --learning-rate {rate}" in command


@pytest.mark.slow
def test_costs_are_measured_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs" / "cost.json"
    names = ["--teacher", "resnet20-fashion", "--student", "resnet8-fashion", "--data", "fashion-mnist"]
    assert main(["cost", *names, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["teacher"]["parameters"] == 272_186
    assert found["student"]["macs"] < found["teacher"]["macs"]
    assert len(found["teacher"]["milliseconds_of_rounds"]) == 5
    assert 0 < found["student"]["milliseconds"] < found["teacher"]["milliseconds"]
    assert "parameters" in capsys.readouterr().out


def test_checking_a_report_trains_nothing(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kdlib.train", None)
    assert faults(good) == []


# The example, from a real run.


def test_the_example_is_accepted() -> None:
    assert faults(EXAMPLE) == []


@pytest.mark.parametrize(
    ("section", "old", "new", "message"),
    [
        ("Results", "| shuffled | 5", "| other | 5", "Controls: the control shuffled was run"),
        ("Data", "- licence: MIT", "- licence: unknown", "Data: there is no '- licence"),
        ("Results", "| 60.", "| 62.", "Accuracies: the accuracy of kd"),
        ("Cost", "| student | 78", "| student | 77", "Cost: the parameters of the student"),
        ("Repeat", "--epochs 8", "--epochs 80", "Repeat: the section Repeat lacks the command"),
    ],
)
def test_the_example_with_one_fault_is_refused(section: str, old: str, new: str, message: str) -> None:
    report = capstone.read_report(EXAMPLE)
    found = capstone.check(report.changed(section, old, new), capstone.read_evidence(report))
    assert any(fault.startswith(message) for fault in found), found


def test_lines_of_tables_and_signs_are_no_words(good: Path) -> None:
    report = capstone.read_report(good)
    text = "| a | 1.5 % |\n|---|--:|\n| - |  |\n\n- one point \u2014 two words"
    assert replace(report, sections={"Limits": text}).words == 6


def test_a_report_that_is_not_there_is_told_with_the_way_to_one(tmp_path: Path) -> None:
    for path, what in ((tmp_path / "report.md", "no file"), (tmp_path, "a folder")):
        with pytest.raises(OSError, match=rf"{what}.*course\.capstone draft"):
            capstone.read_report(path)


def test_a_hyphen_between_two_numbers_is_no_sign() -> None:
    assert [one.value for one in numbers.with_units("a gain of 0.3-1.2 points, and -2 % elsewhere")] == [1.2, -2.0]


@pytest.mark.parametrize("name", ["resnet20", "ResNet-20", "v0.2"])
def test_the_number_in_a_name_is_no_end_of_a_range(name: str) -> None:
    assert [one.value for one in numbers.with_units(f"It shrinks {name} to 28.6 % of its size.")] == [28.6]


@pytest.mark.parametrize(
    ("file", "entry", "value"),
    [
        ("cost.json", "teacher", {}),
        ("cost.json", "student", None),
        ("export.json", "formats", None),
        ("export.json", "formats", [1]),
        ("cost.json", "student", {"milliseconds": "fast"}),
    ],
)
def test_an_edited_file_is_one_sentence_with_the_command_that_writes_it(
    file: str, entry: str, value: Any, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy_of(good, tmp_path)
    edited = next(path.parent.rglob(file))
    edited.write_text(json.dumps(json.loads(edited.read_text()) | {entry: value}))
    assert main(["check", str(path)]) == 2
    said = capsys.readouterr().err
    assert str(edited) in said
    assert {"cost.json": "python -m course.capstone cost", "export.json": "kdlib export"}[file] in said


def changed_report(good: Path, section: str, old: str, new: str, **evidence: Any) -> list[str]:
    """The faults of the good report with another text in a section, or with other evidence."""
    report = capstone.read_report(good)
    found = replace(capstone.read_evidence(report), **evidence)
    return capstone.check(report.changed(section, old, new) if section else report, found)


def test_a_number_is_that_of_the_files_to_the_digits_that_are_written() -> None:
    (one,) = numbers.all_numbers("75.3")
    assert [one.agrees(value) for value in (75.249, 75.251, 75.349, 75.36, 75.2)] == [False, True, True, False, False]


def test_the_test_pictures_have_to_be_named(good: Path) -> None:
    found = changed_report(good, "Data", f"{IMAGES} ", "100 ")
    assert len(found) == 1, found
    assert "does not name the 400 test pictures" in found[0]


def test_a_seed_that_diverged_may_not_be_left_out(tmp_path: Path) -> None:
    path = write_evidence(tmp_path)
    study = path.parent / "runs" / "study" / study_name(path)
    lines = study.read_text().splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines) if ",label-smoothing," in line)
    study.write_text("".join(lines[:number] + lines[number + 1 :]))
    said = [fault for fault in faults(path) if fault.startswith("Seeds: label-smoothing")]
    assert len(said) == 1
    assert "A seed at which a method fails may not be left out" in said[0]


def test_a_seed_that_diverged_is_accepted_where_the_report_says_so(tmp_path: Path) -> None:
    path = write_evidence(tmp_path)
    study = path.parent / "runs" / "study" / study_name(path)
    with study.open(newline="") as file:
        rows = list(csv.DictReader(file))
    failed = next(row for row in rows if (row["method"], row["seed"]) == ("label-smoothing", "3"))
    failed |= {"test_accuracy": "", "validation_accuracy": "", "error": "the loss is nan"}
    with study.open("w", newline="") as file:
        write = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        write.writeheader()
        write.writerows(rows)
    said = [fault for fault in faults(path) if fault.startswith("Seeds: label-smoothing")]
    assert len(said) == 1
    assert "label-smoothing, seed 3 diverged" in said[0]
    path.write_text(path.read_text().replace("## Limits\n", "## Limits\n\nOf label-smoothing, seed 3 diverged.\n"))
    assert not [fault for fault in faults(path) if fault.startswith("Seeds: label-smoothing")]


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 2.0},
        {"alpha": 0.5},
        {"views": 3},
        {"method": "dist"},
        {"teacher": "another.safetensors"},
        {"recipe": {"learning_rate": 0.05}},
        {"recipe": {"weight_decay": 0.0}},
    ],
)
def test_a_student_with_a_setting_of_its_own_is_none_of_the_study(change: dict[str, Any], good: Path) -> None:
    student = capstone.read_evidence(capstone.read_report(good)).student
    job = {**student["job"], **change, "recipe": {**student["job"]["recipe"], **change.get("recipe", {})}}
    found = changed_report(good, "", "", "", student={**student, "job": job})
    assert any("is no student of the study" in one for one in found)


def test_a_student_by_the_defaults_of_its_loss_is_one_of_the_study_that_has_them(good: Path) -> None:
    student = capstone.read_evidence(capstone.read_report(good)).student
    assert (student["job"]["temperature"], student["job"]["alpha"]) == (4, 0.1)
    for method in ("logit", "kd"):
        job = {**student["job"], "temperature": None, "alpha": None, "method": method}
        assert changed_report(good, "", "", "", student={**student, "job": job}) == []
        assert changed_report(good, "", "", "", student={**student, "job": {**job, "alpha": 0.5}}) != []


def test_costs_of_another_teacher_are_refused(good: Path) -> None:
    evidence = capstone.read_evidence(capstone.read_report(good))
    other = {**evidence.student, "teacher_parameters": 1}
    found = changed_report(good, "", "", "", student=other)
    assert any("teacher that was timed has another size" in one for one in found)


@pytest.mark.parametrize(
    "text",
    [
        "-9.94 points (-9.97 to -9.92)",
        "from 9.92 to 9.94 points",
        "9.94 percentage points",
        "9.94 percent",
        "9.94 per cent",
    ],
)
def test_numbers_are_seen_in_whatever_form_they_stand(text: str) -> None:
    plain = text.replace("per cent", "").replace("(", "").replace(")", "")
    assert [one.value for one in numbers.with_units(text)] == [one.value for one in numbers.all_numbers(plain)]


def test_where_all_seeds_gain_alike_the_draft_says_so_and_is_accepted(tmp_path: Path) -> None:
    gain = SimpleNamespace(low=-math.inf, high=math.inf, over="seeds")
    evidence: Any = None
    assert not list(checks._interval("kd", "all seeds equal", gain, evidence))
    (fault,) = checks._interval("kd", "-inf to +inf", gain, evidence)
    assert "Write 'all seeds equal'" in fault


@pytest.mark.parametrize("change", [{"images": 6_000}, {"student": "resnet20"}])
def test_a_student_of_other_settings_is_none_of_the_study(change: dict[str, Any], good: Path) -> None:
    student = capstone.read_evidence(capstone.read_report(good)).student
    found = changed_report(good, "", "", "", student={**student, "job": {**student["job"], **change}})
    assert len(found) == 1, found
    assert "is no student of the study" in found[0]


@pytest.mark.parametrize(("further", "accepted"), [(0.01, True), (0.012, False)])
def test_a_student_that_was_trained_again_may_differ_by_a_hundredth(further: float, accepted: bool, good: Path) -> None:
    evidence = capstone.read_evidence(capstone.read_report(good))
    accuracies = [float(row["test_accuracy"]) for row in evidence.results.rows if row["seed"] == "0"]
    student = {**evidence.student, "student_accuracy": max(accuracies) + further}
    found = changed_report(good, "", "", "", student=student)
    assert any("is no student of the study" in one for one in found) is not accepted


@pytest.mark.parametrize(("answers", "accepted"), [(0, True), (2, True), (3, False)])
def test_of_few_validation_pictures_two_answers_of_the_exported_network_may_differ(
    answers: int, accepted: bool, good: Path
) -> None:
    evidence = capstone.read_evidence(capstone.read_report(good))
    right = float(evidence.results.runs("kd")[0]["validation_accuracy"])
    other = {"images": 50, "float_accuracy": right - answers / 50}
    formats = [{**one, **other} for one in evidence.export["formats"]]
    found = changed_report(good, "", "", "", export={**evidence.export, "formats": formats})
    assert (found == []) is accepted, found


def test_of_few_test_pictures_two_answers_may_differ() -> None:
    evidence = capstone.read_evidence(capstone.read_report(EXAMPLE))
    row = evidence.results.runs("kd")[evidence.student["job"]["seed"]]
    student = {**evidence.student, "student_accuracy": float(row["test_accuracy"]) + 2 / 50}
    few = replace(evidence, test_images=50, student=student)
    assert not list(checks._same_student(few))
    assert list(checks._same_student(replace(few, test_images=10_000)))


def test_costs_of_pictures_of_another_size_are_refused(good: Path) -> None:
    cost = capstone.read_evidence(capstone.read_report(good)).cost
    (found,) = changed_report(good, "", "", "", cost={**cost, "data": "imagefolder:pictures"})
    assert "measured on pictures of imagefolder:pictures" in found
    assert not changed_report(good, "", "", "", cost={**cost, "data": "imagefolder@32:/elsewhere/pictures"})


def test_costs_of_a_network_of_other_pictures_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    models.save(models.build("resnet8", num_classes=10, in_channels=3), other)
    names = ["--teacher", str(other), "--student", "resnet8-fashion", "--data", "fashion-mnist"]
    assert main(["cost", *names, "--out", str(tmp_path / "cost.json")]) == 2
    assert "built for images of 28 x 28 pixels" in capsys.readouterr().err


def test_the_agreement_of_an_exported_file_is_compared(good: Path) -> None:
    found = changed_report(good, "Cost", "98.75", "99.75")
    assert len(found) == 1, found
    assert found[0].startswith("Cost: the agreement of onnx-int8 is 99.75; the export measured 98.75")


def test_a_command_may_leave_out_what_changes_nothing(good: Path) -> None:
    assert changed_report(good, "Repeat", " --quiet", "") == []
    assert changed_report(good, "Repeat", " --quiet", " --quiet --workers 4") == []
    assert changed_report(good, "Repeat", " --quiet", " --quiet --workers=4 --cache='my cache'") == []
    assert changed_report(good, "Repeat", "--data imagefolder", "--quiet --data imagefolder") == []


def test_a_study_of_other_data_beside_it_is_nobodys_business(good: Path, tmp_path: Path) -> None:
    path = copy_of(good, tmp_path)
    write_study(path.parent / "runs" / "study", budget=replace(BUDGET, data="imagefolder@32:others", student="mlp"))
    assert faults(path) == []


def test_a_wrong_claim_in_plain_words_is_found() -> None:
    (fault,) = with_conclusion("kd outperforms hard labels; by its interval it LOSES.")
    assert fault == "Verdicts: the conclusion says that kd outperforms, and its interval says LOSES."
    assert with_conclusion("kd never beats hard labels, it does not: kd LOSES.") == []


@pytest.mark.parametrize(
    "text",
    [
        "The baseline beats kd: kd LOSES.",
        "Hard labels beat kd, and label-smoothing outperforms kd. kd LOSES.",
        "kd beats nothing: it LOSES.",
        "Nothing here shows that kd BEATS hard labels.",
        "shuffled never BEATS hard labels.",
        "kd never BEATS hard labels, it does not: kd LOSES.",
        "kd LOSES. The student that is kept is right on 61.55 %, and agrees with its teacher on 61.9 %.",
        "kd LOSES. Of the validation pictures the int8 file has 64.8 % right, and the network 63.9 %.",
        "kd LOSES, with 95 % confidence.",
        "kd LOSES, by a 95\nper cent confidence interval.",
        "kd LOSES. These are intervals that hold together with 95 %.",
        "kd LOSES. The int8 file agrees with the student on 97.20 % of the pictures.",
        "kd LOSES. The student needs 29 % of the teacher's parameters, 71 % fewer.",
        "kd LOSES by 6.4 points; it falls 6.4 points below hard labels.",
        "kd LOSES by +6.4 points.",
        "kd LOSES. So kd stays +6.4 points behind hard labels.",
        "kd LOSES. The gap of kd to hard labels is +6.4 points.",
        "kd LOSES: hard labels are +6.4 points ahead of it.",
        "kd LOSES: hard is +6.4 points ahead of it.",
        "kd LOSES: trained alone the student has +6.4 points.",
        "kd LOSES by about +6.4 points.",
        "kd LOSES: +6.4 points for hard labels.",
        "kd LOSES to hard labels, which are +6.4 points ahead.",
        "kd LOSES. Without kd the student has +6.4 points.",
        "kd LOSES. A student of its own has +6.4 points over kd.",
        "kd LOSES, label-smoothing is INCONCLUSIVE, and plain training has +6.4 points over kd.",
        "kd LOSES: -6.4 points, and not +6.4 points.",
        "shuffled LOSES: -57.2 points. From kd to hard labels it is +6.4 points.",
        "_kd_ LOSES: -6.4 points, and __label-smoothing__ is INCONCLUSIVE.",
        "kd LOSES, and hard labels are 6.4 points better than kd.",
        "kd LOSES, and the baseline is 6.4 points higher than kd.",
        "kd LOSES and hard labels are ahead of kd by 6.4 points.",
        "Although kd LOSES, hard labels are 6.4 points better than kd.",
        "kd LOSES: 60.95 % misses the goal of 75 % by 14.05 points.",
        "kd LOSES. Label smoothing, the best by its mean, is 6.54 points short of the goal.",
    ],
)
def test_what_the_files_say_may_be_said(text: str) -> None:
    assert with_conclusion(text, "Verdicts", "Numbers") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("KD BEATS hard labels. So label-smoothing is INCONCLUSIVE.", "says BEATS of kd, and its interval says LOSES"),
        ("KD beats hard labels. kd LOSES.", "says that kd beats, and its interval says LOSES"),
        ("There is no doubt that kd BEATS hard labels.", "says BEATS of kd, and its interval says LOSES"),
        ("kd not only BEATS hard labels: it is small.", "says BEATS of kd, and its interval says LOSES"),
        ("kd LOSES. It stays within its interval and ends at 95 %.", "has 95, which no file gives"),
        ("kd gains 6.4 points over hard labels. label-smoothing is INCONCLUSIVE.", "calls 6.4 a gain of kd"),
        ("kd LOSES: +6.4 points (-8.5 to -4.4).", "calls +6.4 a gain of kd; the rows say -6.44 points"),
        ("kd, which gains +6.4 points, is small. kd LOSES.", "calls +6.4 a gain of kd"),
        ("kd LOSES against hard labels, with +6.44 points.", "calls +6.44 a gain of kd"),
        ("Over hard labels, kd LOSES: +6.4 points, and the controls do worse.", "calls +6.4 a gain of kd"),
        ("label-smoothing is INCONCLUSIVE: +1.1 points, and kd LOSES: +6.4 points.", "calls +6.4 a gain of kd"),
        ("The control shuffled LOSES (+57.2 points).", "calls +57.2 a gain of shuffled"),
        (
            "kd BEATS hard labels, perhaps as a kind of label smoothing.",
            "says BEATS of kd, and its interval says LOSES",
        ),
        ("kd gains 6.4 points, as label smoothing does. So kd LOSES.", "calls 6.4 a gain of kd"),
        ("kd LOSES. Label smoothing BEATS hard labels.", "says BEATS of label-smoothing, and its interval says INC"),
        ("kd LOSES. Label smoothing beats hard labels by 1.1 points.", "says that label-smoothing beats"),
        ("kd LOSES, but label smoothing LOSES as well.", "says LOSES of label-smoothing, and its interval says INC"),
        ("kd LOSES, with a gain of +6.4 points (-8.5 to -4.4).", "calls +6.4 a gain of kd"),
        ("kd: +6.4 points (-8.5 to -4.4), LOSES.", "calls +6.4 a gain of kd"),
        ("kd **LOSES**: +6.4 points.", "calls +6.4 a gain of kd"),
        ("kd LOSES, at 46 % of the teacher's parameters.", "has 46, which no file gives"),
        ("kd LOSES, and label-smoothing reaches 95 %.", "has 95, which no file gives"),
        ("By its interval kd LOSES. The teacher is right on 95 %.", "has 95, which no file gives"),
        ("Label smoothing is INCONCLUSIVE, and kd gains 6.4 points. So kd LOSES.", "calls 6.4 a gain of kd"),
        ("kd gains 6.4 points, more than shuffled. So kd LOSES.", "calls 6.4 a gain of kd"),
        ("_kd_ BEATS hard labels.", "says BEATS of kd, and its interval says LOSES"),
        ("__kd__ BEATS hard labels.", "says BEATS of kd, and its interval says LOSES"),
        ("kd LOSES: it misses the goal of 75 % by 14.55 points.", "has 14.55, which no file gives"),
    ],
)
def test_what_the_files_do_not_say_is_found(text: str, message: str) -> None:
    (fault,) = with_conclusion(text, "Verdicts", "Numbers")
    assert message in fault


@pytest.mark.parametrize(("gain", "accepted"), [("-1.8", True), ("+1.8", False)])
def test_an_inconclusive_loss_keeps_its_sign(gain: str, accepted: bool, good: Path) -> None:
    shuffled = load_study(good.parent / "runs" / "study" / study_name(good)).gain("shuffled")
    said = f"The control shuffled is INCONCLUSIVE: {gain} points ({100 * shuffled.low:+.1f} to +1.6)."
    found = changed_report(good, "Conclusion", "The controls gain less.", said)
    assert (found == []) is accepted, found


def test_a_report_of_some_editors_is_read_and_one_of_another_encoding_is_told(good: Path, tmp_path: Path) -> None:
    path = copy_of(good, tmp_path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8-sig")
    assert faults(path) == []
    path.write_text(text.replace("## Data", "## Data\n\n\u00e4"), encoding="cp1252")
    with pytest.raises(ValueError, match="is not text in UTF-8. Save it with this encoding"):
        capstone.read_report(path)


def test_a_draft_of_a_study_that_is_not_finished_has_no_nan(good: Path, tmp_path: Path) -> None:
    path = copy_of(good, tmp_path)
    study = path.parent / "runs" / "study" / study_name(path)
    lines = study.read_text().splitlines(keepends=True)
    number = next(place for place, line in enumerate(lines) if ",kd," in line)
    study.write_text("".join(lines[:number] + lines[number + 1 :]))
    files = {"study": study} | {name: path.parent / "runs" / f"{name}.json" for name in ("student", "export", "cost")}
    options = [word for name, one in files.items() for word in (f"--{name}", str(one))]
    assert main(["draft", *options, "--out", str(tmp_path / "new.md")]) == 0
    text = (tmp_path / "new.md").read_text()
    assert "nan" not in text
    assert "| kd | 5 | TODO: " in text


def test_the_level_of_the_intervals_may_stand_in_the_conclusion(good: Path) -> None:
    assert changed_report(good, "Conclusion", "gain less.", "gain less. These are 95 % intervals.") == []


def test_a_renamed_study_is_refused(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy_of(good, tmp_path)
    name = study_name(path)
    shutil.copy(path.parent / "runs" / "study" / name, path.parent / "runs" / "study" / "mine.csv")
    path.write_text(path.read_text().replace(name, "mine.csv"))
    assert main(["check", str(path)]) == 2
    assert f"its rows belong to {name}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_the_time_of_a_network_is_the_least_of_its_rounds_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "SECONDS", 1e-3)
    before, seen = torch.get_num_threads(), []
    set_threads = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda count: (seen.append(count), set_threads(count)))
    found = cost.measured("resnet8-fashion", "resnet8-fashion", "fashion-mnist")
    assert seen == [1, before]
    for role in ("teacher", "student"):
        assert len(found[role]["milliseconds_of_rounds"]) == cost.ROUNDS
        assert found[role]["milliseconds"] == min(found[role]["milliseconds_of_rounds"])
