"""The claims of a report, held against the files: one function a claim, which yields a sentence for each fault."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from course.capstone.document import PLACEHOLDER, Report
from course.capstone.draft import ALL_EQUAL, LOGIT_METHODS
from course.capstone.evidence import CONTROLS, Evidence
from course.capstone.numbers import Written, all_numbers, first_number, with_units
from kdlib.loss_table import LOSSES
from kdlib.method_parser import FAMILY_DEFAULTS
from kdlib.study.method_specs import Settings
from kdlib.study.plans import Budget
from kdlib.study.report import without_options
from kdlib.verdict import LEAST_SEEDS

MOST_WORDS = 900
# By how much the accuracy of a student that was trained again may differ on another machine, or, of few test pictures,
# how many answers.
SAME_STUDENT, SAME_ANSWERS = 0.01, 2
NOTHING = {"", "-", "?", "none", "unknown", "n/a", "not known", "no"}
VERDICTS = ("BEATS", "LOSES", "INCONCLUSIVE")
VERDICT = re.compile(rf"\b(?:{'|'.join(VERDICTS)})\b")
NEGATION = re.compile(
    r"\b(not(?! only| just| merely)|no(?! doubt| question)|neither|nor|nothing(?! but)|none|never)\b", re.IGNORECASE
)
# The method, and not the effect: "as a kind of label smoothing", "as label smoothing does".
LABEL_SMOOTHING = re.compile(r"(?<!kind of )(?<!form of )(?<!sort of )(?<!as )(?<!like )\blabel smoothing\b")
CLAIM = re.compile(r"\b([Bb]eats|[Oo]utperforms)\b")  # BEATS is a verdict
GAIN = re.compile(r"\b(gains?|gained|ahead|better|higher|improves?|improved)\b", re.IGNORECASE)
LOSS = re.compile(r"\b(loses?|lost|loss|behind|below|worse|less|fewer|lower|falls?|drops?|costs?)\b", re.IGNORECASE)
CLAUSE = re.compile(r"[,;]\s|\sand\s")
EMPHASIS = str.maketrans("", "", "*_")
MARKUP = "` *_"  # around the word of a cell
ONCE = re.compile(
    r"(?<!not )(?<!not just )(?<!not only )(?<!than )(?<!least )\bonce\b"
    r"(?! (?:(?:in|after) )?(?:per|an?|each|every) (?:epoch|step|trial|setting)\b)",
    re.IGNORECASE,
)
COMPARED = re.compile(r"\b(?:than|ahead of)\s+(?:with\s+)?(?:the\s+)?[\w+-]+", re.IGNORECASE)
OVER_BASELINE = re.compile(r"\b(?:over|above|against|to|than) (?:the )?(?:hard labels|baseline)\b", re.IGNORECASE)
TOO_MUCH = re.compile(r"\b(proves?|proven|significant(?:ly)?|certainly|always|guarantees?)\b", re.IGNORECASE)
# The level of intervals, which is no result: "95 % intervals", "intervals that hold together with 95 %".
LEVEL = re.compile(
    r"(?<![\w.,])95\s*(?:%|per ?cent\b)[\s-]*(?:confidence|intervals?|CI)\b"
    r"|\b(?:confidence|intervals?)(?:\s+(?:that|which|all|holds?|together)){0,4}"
    r"\s+(?:of|with|at)\s+95\s*(?:%|per ?cent\b)",
    re.IGNORECASE,
)
UNRELATED = {"--quiet": 0, "--workers": 1, "--cache": 1}  # options of a study that say nothing about its runs


def check(report: Report, evidence: Evidence) -> list[str]:
    """The faults of a report, each a sentence with what to do; an empty list if every claim holds."""
    return [f"{name}: {fault}" for name, one in CHECKS.items() for fault in one(report, evidence)]


def complete(report: Report, evidence: Evidence) -> Iterator[str]:
    """Nothing is left open, and it is one page."""
    places = {"the title": report.front["title"], "the heading": report.heading, **report.sections}
    left = [name for name, text in places.items() if PLACEHOLDER in text]
    if left:
        yield f"{PLACEHOLDER} is left in {', '.join(left)}. Put a sentence there, or a number from the files."
    if report.words > MOST_WORDS:
        yield f"It has {report.words:,} words, and a page has {MOST_WORDS} at most. Say less, and point to the files."


def data(report: Report, evidence: Evidence) -> Iterator[str]:
    """Where the pictures come from, whether they may be used, what lies on both sides of the split."""
    said = report.bullets("Data")
    for name, what in {
        "origin": "who took the pictures, where and when",
        "licence": "under which licence, or with whose permission, you use them",
        "split": "what keeps the test pictures apart, such as another day, place or person",
    }.items():
        if said.get(name, "").rstrip(".").lower() in NOTHING:
            yield f"there is no '- {name}: ...' in the section Data. Say {what}."
    counts = [number.value for number in all_numbers(said.get("pictures", ""))]
    for what, count in {"training": evidence.results.images, "test": evidence.test_images}.items():
        if count is not None and count not in counts:
            yield f"'- pictures: ...' does not name the {count:,} {what} pictures of the study."


def controls(report: Report, evidence: Evidence) -> Iterator[str]:
    """A control was run, and is in the report; so is every other method that was run."""
    if not evidence.controls:
        yield (
            "the study has no control, so a gain may have any cause. Run it again with --method shuffled (the teacher "
            f"answers for other pictures) or another of {', '.join(CONTROLS)}: what is finished is kept."
        )
    shown = set(_results_rows(report))
    yield from _twice(row["method"].strip(MARKUP) for row in _rows_of_results(report))
    for name in evidence.names:
        if name not in shown:
            kind = "the control" if name in CONTROLS else "the method" if name != "hard" else "the baseline"
            yield f"{kind} {name} was run, and it is not in the table of results. Show all that was run."
    for name in sorted(shown - set(evidence.names)):
        yield f"the table of results has {name!r}, which the study did not run. It ran: {', '.join(evidence.names)}."


def seeds(report: Report, evidence: Evidence) -> Iterator[str]:
    """There are five paired seeds at least, none was left out, and the report says how many."""
    results = evidence.results
    count = len(results.seeds)
    if count < LEAST_SEEDS:
        yield f"the study has {count} seeds, and a verdict takes {LEAST_SEEDS} at least. Give it --seeds {LEAST_SEEDS}."
    for name, problem in results.problems.items():
        diverged = re.findall(r"(seed \d+) diverged", problem)
        if len(diverged) < len(problem.split("; ")):
            yield f"{name}: {problem}. A seed at which a method fails may not be left out. Finish the study."
        elif not any(name in text and all(one in text for one in diverged) for text in _said(report, name)):
            yield (
                f"{name}: {problem}. A seed at which a method fails may not be left out. Say it in the table of "
                f"results, or under Limits: {name}, {', '.join(diverged)} diverged."
            )
    for name, row in _results_rows(report).items():
        written = first_number(row.get("seeds", ""))
        if name in evidence.names and (written is None or written.value != count):
            yield f"for {name} the report has {row.get('seeds') or 'no number of'} seeds, and the files have {count}."


def _said(report: Report, method: str) -> list[str]:
    """Where a report may speak of a seed at which this method fails."""
    row = _results_rows(report).get(method, {})
    prose = [sentence for section in ("Results", "Limits") for sentence in _sentences(report.prose(section))]
    return [f"{method} {' '.join(row.values())}", *prose]


def accuracies(report: Report, evidence: Evidence) -> Iterator[str]:
    """The accuracies are the means of the rows."""
    for name, row in _known_rows(report, evidence).items():
        written = first_number(row.get("accuracy %", ""))
        score = evidence.results.score(name)
        if score.problem:
            continue
        if written is None:
            yield f"there is no accuracy of {name} in the column 'accuracy %'. It is {100 * score.mean:.2f}."
        elif written.decimals == 0:
            yield f"the accuracy of {name}, {written.text}, needs a decimal or two: the gains are smaller than a point."
        elif not written.agrees(100 * score.mean):
            best = max(score.by_seed.values())
            which = "the best seed; the mean of all is" if written.agrees(100 * best) else "not what the rows say:"
            yield f"the accuracy of {name}, {written.text} %, is {which} {100 * score.mean:.2f} %."


def intervals(report: Report, evidence: Evidence) -> Iterator[str]:
    """Every gain has its interval, and both follow from the rows."""
    for name, row in _known_rows(report, evidence).items():
        if name == evidence.results.baseline:
            continue
        gain = evidence.results.gain(name)
        if gain.problem:
            continue
        written = first_number(row.get("gain", ""))
        if written is None:
            yield (
                f"there is no gain of {name} over hard labels in the column 'gain'. It is {100 * gain.mean:+.2f} "
                "points."
            )
        elif written.decimals == 0:
            yield f"the gain of {name}, {written.text}, needs a decimal or two: gains are smaller than a point."
        elif not written.agrees(100 * gain.mean):
            yield f"the gain of {name}, {written.text} points, is not what the rows say: {100 * gain.mean:+.2f}."
        yield from _interval(name, row.get("interval", ""), gain, evidence)


def _interval(name: str, said: str, gain: Any, evidence: Evidence) -> Iterator[str]:
    if not math.isfinite(gain.low):
        if ALL_EQUAL not in said:
            yield f"of {name} all seeds have the same gain, so there is no interval. Write {ALL_EQUAL!r}."
        return
    written, expected = all_numbers(said), (100 * gain.low, 100 * gain.high)
    shown = f"{expected[0]:+.2f} to {expected[1]:+.2f}"
    if len(written) != 2:
        yield f"the gain of {name} has no interval. The rows give {shown} points, over {gain.over}."
        return
    if any(one.decimals == 0 for one in written):
        ends = " to ".join(one.text for one in written)
        yield f"the interval of {name}, {ends}, needs a decimal or two: gains are smaller than a point."
        return
    if all(one.agrees(value) for one, value in zip(written, expected, strict=True)):
        return
    for comparisons, over_seeds, why in (
        (1, False, f"the interval of a single comparison, and {gain.comparisons} methods were compared"),
        (gain.comparisons, True, "the interval over seeds alone; the test pictures are a sample as well"),
        (1, True, f"that of a single comparison over seeds alone, and {gain.comparisons} methods were compared"),
    ):
        other = _other_interval(name, evidence, comparisons, over_seeds)
        if other and all(one.agrees(100 * value) for one, value in zip(written, other, strict=True)):
            yield f"the interval of {name} is {why}. It should be {shown} points."
            return
    yield f"the interval of {name}, {written[0].text} to {written[1].text}, does not follow from the rows: {shown}."


def _other_interval(name: str, evidence: Evidence, comparisons: int, over_seeds: bool) -> tuple[float, float] | None:
    """The interval that a known mistake leads to."""
    from kdlib import verdict

    results = evidence.results
    if over_seeds:
        sides = [results.score(one).by_seed for one in (name, results.baseline)]
        found = verdict.compare(*sides, comparisons=comparisons)
    else:
        right = [results.right(one) for one in (name, results.baseline)]
        if not all(right):
            return None
        found = verdict.compare_samples(*right, comparisons=comparisons)
    return found.low, found.high


def verdicts(report: Report, evidence: Evidence) -> Iterator[str]:
    """The verdicts, in the table and in the conclusion, are those of the intervals."""
    results = evidence.results
    of_method = {name: str(results.gain(name).verdict) for name in results.methods if not results.gain(name).problem}
    for name, row in _known_rows(report, evidence).items():
        if name in of_method and row.get("verdict", "").strip(MARKUP) != of_method[name]:
            yield f"the verdict of {name} is {of_method[name]}, by its interval; the table has {row.get('verdict')!r}."
    text = report.prose("Conclusion")
    for sentence in _sentences(text):
        yield from _verdicts_of(sentence, of_method)
        yield from _claims_of(sentence, of_method)
    if not any(word in text for word in VERDICTS):
        yield (
            "the conclusion has no verdict. Say for your method: BEATS, LOSES or INCONCLUSIVE, with gain and interval."
        )
    for word in dict.fromkeys(TOO_MUCH.findall(text)):
        yield (
            f"the conclusion says {word!r}. Five seeds and one test set do not carry that; say what the interval says."
        )


def _verdicts_of(sentence: str, of_method: dict[str, str]) -> Iterator[str]:
    """The verdicts that a sentence gives to methods and their intervals do not; as many of both belong together."""
    methods, words = _named(of_method, sentence), list(VERDICT.finditer(sentence))
    if len(methods) == len(words):
        for name, word in zip(methods, words, strict=True):
            # "Nothing shows that kd BEATS hard labels" gives no verdict; "Nothing helps, and kd BEATS them" does.
            clause = re.split(r"[,;:]", sentence[: word.start()])[-1]
            if of_method[name] != word[0] and not NEGATION.search(clause):
                yield f"the conclusion says {word[0]} of {name}, and its interval says {of_method[name]}."
        return
    found = {name: of_method[name] for name in methods}
    for word in dict.fromkeys(VERDICT.findall(sentence)):
        if found and word not in found.values() and not NEGATION.search(sentence):
            intervals = ", ".join(f"{name} {verdict}" for name, verdict in found.items())
            yield f"the conclusion says {word} of {' and '.join(found)}, and their intervals say: {intervals}."


def _claims_of(sentence: str, of_method: dict[str, str]) -> Iterator[str]:
    """The methods of which a sentence says without a verdict that they beat hard labels, and they do not."""
    claim = CLAIM.search(sentence)
    # With a method behind the word something else is compared: "the baseline beats kd".
    if claim is None or NEGATION.search(sentence) or _named(of_method, sentence[claim.end() :]):
        return
    for name in dict.fromkeys(_named(of_method, sentence[: claim.start()])):
        if of_method[name] != "BEATS":
            yield f"the conclusion says that {name} {claim[0]}, and its interval says {of_method[name]}."


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", " ".join(text.split()))


def _named(names: Collection[str], sentence: str) -> list[str]:
    """The methods that a sentence names, in its order and as often as it does; label-smoothing also in two words."""
    text = LABEL_SMOOTHING.sub("label-smoothing", sentence.translate(EMPHASIS).casefold())
    return [word for word in re.findall(r"[\w+-]+", text) if word in names]


def conclusion_numbers(report: Report, evidence: Evidence) -> Iterator[str]:
    """Every per cent and every point in the conclusion is a number of the files, or the goal in the question."""
    results = evidence.results
    known = [100 * results.score(name).mean for name in evidence.names]
    known += [100 * float(row["teacher_accuracy"]) for row in results.rows[:1] if row.get("teacher_accuracy")]
    for name in results.methods:
        gain = results.gain(name)
        known += [100 * value for value in (gain.mean, gain.low, gain.high)]
    goals = [one.value for one in with_units(report.prose("Question"))]
    known += goals
    known += [100 * float(evidence.student[name]) for name in ("student_accuracy", "agreement")]
    measured = ("accuracy", "float_accuracy", "agreement")
    known += [100 * float(one[name]) for one in evidence.export["formats"] for name in measured]
    for count in ("parameters", "macs", "bytes", "milliseconds"):
        share = 100 * evidence.cost["student"][count] / evidence.cost["teacher"][count]
        known += [share, 100 - share]
    means = [100 * mean for mean in _means(evidence)]
    differences = [a - b for a in (*means, *goals) for b in means]
    for one in with_units(LEVEL.sub("", report.prose("Conclusion"))):
        # "Loses by 1.2 points" has no sign, where the rows have one.
        if not any(one.agrees(value) or (not one.signed and one.agrees(abs(value))) for value in known + differences):
            yield (
                f"the conclusion has {one.text}, which no file gives: it is no accuracy, gain, interval or agreement, "
                "and no share of the teacher's cost."
            )
    yield from _turned_gains(report, evidence, known)


def _turned_gains(report: Report, evidence: Evidence, known: Collection[float]) -> Iterator[str]:
    """Losses that a sentence calls gains, or writes with a plus; known: numbers that may have a plus all the same."""
    gains = {name: evidence.results.gain(name) for name in evidence.results.methods}
    losses = {name: 100 * gain.mean for name, gain in gains.items() if not gain.problem and gain.mean < 0}
    for sentence in _sentences(report.prose("Conclusion")):
        turned: list[tuple[str, str]] = []
        for part in (sentence, *CLAUSE.split(sentence)):
            if GAIN.search(part) and not LOSS.search(part):
                # "hard labels are 6.4 points better than kd" says of kd what the rows say
                turned += [(name, one.text) for name, one in _without_minus(COMPARED.sub("", part), gains, losses)]
            words = OVER_BASELINE.sub("", part.translate(EMPHASIS))
            if not LOSS.search(VERDICT.sub("", words)):  # "+6.4 points behind" says how large the loss is
                turned += [
                    (name, one.text)
                    for name, one in _without_minus(part, gains, losses)
                    if _is_of_verdict(one.text, words) and not any(map(one.agrees, known))
                ]
        for name, text in dict.fromkeys(turned):
            yield f"the conclusion calls {text} a gain of {name}; the rows say {losses[name]:+.2f} points."


def _is_of_verdict(number: str, text: str) -> bool:
    """Whether a number with a plus belongs to a verdict: "LOSES: +6.4", not "LOSES: hard is +6.4 ahead"."""
    one, verdict = re.escape(number), VERDICT.pattern
    behind = rf"{verdict}[\s:,(]*(?:with )?(?:an? |the )?(?:gain of )?{one}(?! points for\b)"
    before = rf"{one} points \([^)]*\)[\s:,]*{verdict}"
    return number[0] == "+" and re.search(f"{behind}|{before}", text) is not None


def _without_minus(text: str, names: Collection[str], losses: Mapping[str, float]) -> Iterator[tuple[str, Written]]:
    """The numbers that are the loss of the one method that a text names, but for the minus."""
    named = set(_named(names, text))
    if len(named) == 1 and named <= losses.keys() and not NEGATION.search(text):
        (name,) = named
        yield from ((name, one) for one in with_units(text) if one.value > 0 and one.agrees(-losses[name]))


def _means(evidence: Evidence) -> list[float]:
    results = evidence.results
    return [results.score(name).mean for name in evidence.names] + [float(results.rows[0]["teacher_accuracy"] or 0)]


def test_set(report: Report, evidence: Evidence) -> Iterator[str]:
    """The test pictures were read once, after everything was chosen; the report says so, and the files do."""
    said = report.bullets("Method")
    if ONCE.search(said.get("test set", "")) is None:
        yield (
            "the section Method has no '- test set: read once, ...'. Say when it was read, and that nothing "
            "was chosen by it."
        )
    if evidence.other_studies:
        others = ", ".join(evidence.other_studies)
        yield (
            f"the test set was read by another study, too: {others}. To choose between the two is a choice by the test "
            "set. Report both, or keep test pictures that neither has seen."
        )
    if evidence.export["split"] != "validation":
        yield "the exported files were compared on the test set. Export again with --validation --overwrite."
    yield from _settings(said.get("settings", "").lower(), evidence)
    yield from _same_student(evidence)


def _settings(said: str, evidence: Evidence) -> Iterator[str]:
    tuned_on = evidence.results.rows[0]["tuned_on"]
    if not said:
        yield "the section Method has no '- settings: ...'. Say whether they are the defaults, or how they were chosen."
    elif tuned_on == "defaults" and "default" not in said:
        yield "the settings are said to be chosen, and the rows say that they are the defaults."
    elif tuned_on != "defaults" and "validation" not in said:
        yield (
            f"the settings were tuned ({tuned_on}). Say that this was done on validation pictures, and by "
            "how many trials."
        )
    elif tuned_on != "defaults" and not evidence.has_trials:
        yield (
            "the file of the trials, choose-....csv, is not beside the study, so nobody can see how the "
            "settings were chosen."
        )


def _same_student(evidence: Evidence) -> Iterator[str]:
    """The student that is handed over is one of the study: neither settings nor seed were chosen by the test set."""
    job = evidence.student["job"]
    # A little more, because 0.62 - 0.61 is above 0.01 in binary numbers.
    near = max(SAME_STUDENT, SAME_ANSWERS / (evidence.test_images or math.inf)) + 1e-9
    rows = [row for row in evidence.results.rows if row["seed"] == str(job.get("seed"))]
    same = [
        row
        for row in rows
        if row["student"] == job.get("student")
        and row["images"] == str(job.get("images"))
        and row["epochs"] == str(job.get("epochs"))
        and _has_settings(row, job)
        and abs(float(row["test_accuracy"] or "nan") - evidence.student["student_accuracy"]) <= near
    ]
    if not same:
        yield (
            f"the student that is exported ({job.get('student')}, seed {job.get('seed')}, "
            f"{100 * evidence.student['student_accuracy']:.2f} % of the test pictures) is no student of the study, "
            "so it is one more reading of the test set. python -m course.capstone repeat prints the command for one."
        )
    elif evidence.export["split"] == "validation":
        yield from _same_network(evidence, same)


def _same_network(evidence: Evidence, rows: Collection[Mapping[str, str]]) -> Iterator[str]:
    """The exported network is the student of one of these rows, as far as its validation accuracy tells."""
    one = evidence.export["formats"][0]  # all were made from one network
    # The rows were measured in the precision of the study, such as bfloat16, and an export is in float32.
    near = max(SAME_STUDENT, SAME_ANSWERS / one["images"]) + 1e-9
    accuracies = [float(row["validation_accuracy"] or "nan") for row in rows]
    if not any(abs(accuracy - one["float_accuracy"]) <= near for accuracy in accuracies):
        yield (
            f"the exported network is right on {100 * one['float_accuracy']:.2f} % of {one['images']:,} validation "
            f"pictures, and that student of the study on {100 * accuracies[0]:.2f} %. Export the student that was "
            "trained, on all validation pictures: with --validation --overwrite, and without --images."
        )


def _has_settings(row: Mapping[str, str], job: Mapping[str, Any]) -> bool:
    """Whether a student of `kdlib distill` was trained as a row says, as far as the command has options for it."""
    methods = {study: _loss_of(name) for study, name in LOGIT_METHODS.items()}
    method, trained = methods.get(row["method"]), _loss_of(str(job.get("method")))
    if method is None:  # trained in Python
        return trained not in methods.values()
    settings, batch = Settings.from_row(row), Budget.from_row(row).batch_size
    recipe = settings.recipe(batch, row["optimizer"])
    numbers = {name: getattr(recipe, name) for name in ("learning_rate", "weight_decay", "batch_size")}
    numbers |= {"temperature": settings.temperature, "alpha": settings.alpha, "views": int(row["views"])}
    of_loss = {name: getattr(LOSSES[method], name) for name in ("temperature", "alpha")}  # where the command has none
    given = {
        **of_loss,
        **{name: value for name, value in {**job, **job.get("recipe", {})}.items() if value is not None},
    }
    names = trained, given.get("optimizer"), Path(str(given.get("teacher"))).name
    return names == (method, row["optimizer"], Path(row["teacher"]).name) and all(
        math.isclose(given.get(name, math.nan), value, rel_tol=1e-6) for name, value in numbers.items()
    )


def _loss_of(method: str) -> str:
    """The loss that a name of --method stands for."""
    name = method.replace("-", "_")
    return FAMILY_DEFAULTS.get(name, name)


def cost(report: Report, evidence: Evidence) -> Iterator[str]:
    """Sizes and times of both networks were measured, and stand in the report."""
    timed, studied = evidence.cost.get("data"), evidence.results.budget["data"]
    if timed is not None and timed.partition(":")[0] != studied.partition(":")[0]:  # imagefolder@32, but for the path
        yield (
            f"the costs were measured on pictures of {timed}, and the study is of {studied}: the size of the pictures "
            "decides MACs and times. Measure them with the data of the study."
        )
    networks = [row for row in _rows_of_costs(report) if "network" in row]
    yield from _twice(row["network"].strip(MARKUP).lower() for row in networks)
    rows = {row["network"].strip(MARKUP).lower(): row for row in networks}
    for role in ("teacher", "student"):
        if role not in rows:
            yield f"the table of costs has no row {role!r} in the column 'network'."
            continue
        for column, name in {
            "parameters": "parameters",
            "macs": "macs",
            "bytes": "bytes",
            "ms": "milliseconds",
        }.items():
            written, measured = first_number(rows[role].get(column, "")), evidence.cost[role][name]
            what = "latency" if column == "ms" else column
            if written is None:
                yield f"the {what} of the {role} is missing: column {column!r}. Measured were {_shown(measured)}."
            elif not written.agrees(measured):
                yield f"the {what} of the {role}, {written.text}, is not what was measured: {_shown(measured)}."
    if evidence.cost["student"]["parameters"] != evidence.student["student_parameters"]:
        yield "the student that was timed has another size than the student that was trained. Measure that one."
    if evidence.cost["teacher"]["parameters"] != evidence.student["teacher_parameters"]:
        yield "the teacher that was timed has another size than the one that taught. Measure that one."
    yield from _files(report, evidence)


def _shown(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:.2f}"


def _files(report: Report, evidence: Evidence) -> Iterator[str]:
    formats = [row for row in _rows_of_costs(report) if "format" in row]
    yield from _twice(row["format"].strip(MARKUP).lower() for row in formats)
    rows = {row["format"].strip(MARKUP).lower(): row for row in formats}
    for one in evidence.export["formats"]:
        if one["format"] not in rows:
            yield f"the exported file {one['format']} has no row in a table with the column 'format'."
            continue
        for column, measured in {"bytes": one["bytes"], "agreement %": 100 * one["agreement"]}.items():
            written = first_number(rows[one["format"]].get(column, ""))
            if written is None or not written.agrees(measured):
                text = "missing" if written is None else written.text
                yield f"the {column.rstrip(' %')} of {one['format']} is {text}; the export measured {measured:,.6g}."


def limits(report: Report, evidence: Evidence) -> Iterator[str]:
    """It says what the evidence does not cover."""
    if len(report.prose("Limits").split()) < 20:
        yield (
            "the section Limits is very short. What do the rows not cover: other pictures, other teachers, "
            "the settings?"
        )


def repeat(report: Report, evidence: Evidence) -> Iterator[str]:
    """The command by which the rows came about stands in the report."""
    given = [_words(line) for line in report.commands("Repeat")]
    for command in evidence.commands:
        if _words(command) not in given:
            yield f"the section Repeat lacks the command of the study, as the file notes it: {command}"


def _words(command: str) -> list[str]:
    """A command as sorted pieces, without what changes nothing."""
    try:
        words = without_options(shlex.split(command), UNRELATED)
    except ValueError:
        return [command]
    kept: list[str] = []
    while words:
        word = words.pop(0)
        if word.startswith("--") and words and not words[0].startswith("--"):
            kept.append(f"{word}={words.pop(0)}")
        else:
            kept.append(word.rpartition("/")[2] if not kept else word)
    return sorted(kept)


def _results_rows(report: Report) -> dict[str, dict[str, str]]:
    """The rows of the table of results by method."""
    return {row["method"].strip(MARKUP): row for row in _rows_of_results(report)}


def _rows_of_results(report: Report) -> list[dict[str, str]]:
    return [row for table in report.tables("Results") for row in table if {"method", "accuracy %"} <= row.keys()]


def _rows_of_costs(report: Report) -> list[dict[str, str]]:
    return [row for table in report.tables("Cost") for row in table]


def _twice(names: Iterable[str]) -> Iterator[str]:
    """Of two rows of one name a reader may take the wrong one."""
    for name, count in Counter(names).items():
        if count > 1:
            yield f"there are two rows of {name} in the tables. Keep the one that the files say."


def _known_rows(report: Report, evidence: Evidence) -> dict[str, dict[str, str]]:
    return {name: row for name, row in _results_rows(report).items() if name in evidence.names}


CHECKS: dict[str, Callable[[Report, Evidence], Iterator[str]]] = {
    "Complete": complete,
    "Data": data,
    "Controls": controls,
    "Seeds": seeds,
    "Accuracies": accuracies,
    "Intervals": intervals,
    "Verdicts": verdicts,
    "Numbers": conclusion_numbers,
    "Test set": test_set,
    "Cost": cost,
    "Limits": limits,
    "Repeat": repeat,
}
