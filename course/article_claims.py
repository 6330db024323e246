"""What is claimed of distillation, and what this course found: the table at the end of lesson 16.

    table = article_claims.table()

Each claim has a verdict of four, the lesson that looks at it, the rows that it rests on, and a sentence that says what
was found. Its numbers are read from these rows when the table is made, so none can be out of date; a few sentences
without numbers of ours are fixed (`_said`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import TYPE_CHECKING

from course import notebooks, older_search
from course.detection import gains as detection
from course.experiments import (
    claims_length,
    claims_results,
    language,
    language_results,
    missing_class,
    modalities,
    modalities_results,
    search_results,
    sentence_results,
    sentences,
    several_results,
    teacher_results,
)
from course.experiments.several_results import Gain
from course.explorers.teacher_outputs import teacher_outputs
from kdlib import data, study, verdict
from kdlib.study.analysis import Estimate, Results
from kdlib.verdict import LEAST_SEEDS, Comparison

if TYPE_CHECKING:
    import pandas as pd

HOLDS, CONDITIONS, NOT_HERE, UNTESTED = "holds", "holds under conditions", "does not hold here", "not tested"
VERDICTS = (HOLDS, CONDITIONS, NOT_HERE, UNTESTED)
BUDGETS = (
    ("article-student", "resnet20-fashion", 10_000),
    ("article-student", "resnet50-fashion-v2", 10_000),
    ("resnet8", "resnet20-fashion", 1_000),
    ("resnet8", "resnet20-fashion", 10_000),
    ("resnet8", "resnet20-fashion", 55_000),
    ("resnet8", "resnet50-fashion-v2", 10_000),
    ("resnet18", "resnet50-fashion", 1_000),
    ("resnet18", "resnet50-fashion", 10_000),
)
METHODS = tuple(f"methods-{student}-{teacher}-{images}" for student, teacher, images in BUDGETS)
LONG = (  # student, teacher, optimizer, folder in data/results/long
    ("resnet8", "resnet20-fashion", "sgd", ""),
    ("resnet8", "resnet20-fashion", "sgd", "sixty-epochs"),
    ("resnet18", "resnet50-fashion-v2", "adamw", ""),
)
TWELVE_EPOCHS = "long/methods-resnet8-resnet20-fashion-55000"
SIXTY_EPOCHS = "long/sixty-epochs/methods-resnet8-resnet20-fashion-55000"
MAIN = "methods-resnet8-resnet20-fashion-10000"
OLDER = f"older-search/{MAIN}"
BETTER = "methods-resnet8-resnet50-fashion-v2-10000"
GRID = "older-search/grid-resnet8-resnet20-fashion-10000"
ANSWERS = ("best three", "best one", "best class alone")


@dataclass(frozen=True)
class Claim:
    """A claim of the article, and what became of it.

    claim: what is said. verdict: one of VERDICTS. found: makes the sentence that says why, with numbers from the rows.
    lessons: the lessons with the evidence, such as "05". rows: names of files in data/results, without ".csv".
    """

    claim: str
    verdict: str
    found: Callable[[], str]
    lessons: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()


@lru_cache(maxsize=32)
def methods(student: str, teacher: str, images: int, baseline: str = "hard") -> Results:
    """The study's runs of one budget."""
    return study.results("methods", student=student, teacher=teacher, images=images, baseline=baseline)


def main(baseline: str = "hard") -> Results:
    """The budget with most methods and seeds: a ResNet-8 taught by a ResNet-20, 10,000 images."""
    return methods("resnet8", "resnet20-fashion", 10_000, baseline)


@lru_cache
def main_by_older_search(baseline: str = "hard") -> Results:
    """The same budget as `main`, with settings by the older search, from which those of most other budgets come."""
    rows = older_search.folder()
    return study.results("methods", student="resnet8", images=10_000, baseline=baseline, folder=rows)


@lru_cache
def long_runs(
    student: str = "resnet8",
    teacher: str = "resnet20-fashion",
    optimizer: str = "sgd",
    part: str = "",
    baseline: str = "hard",
) -> Results:
    """The study's runs of twelve epochs with all images; part: a folder beside them, such as "sixty-epochs"."""
    return study.results(
        "methods",
        student=student,
        teacher=teacher,
        images=55_000,
        optimizer=optimizer,
        baseline=baseline,
        folder=data.data_dir() / "results" / "long" / part,
    )


def points(gain: Estimate | Gain) -> str:
    """A gain with its interval, in a few words, and its verdict if there are enough seeds for one."""
    if isinstance(gain, Gain):
        return _of(gain.comparison)
    seeds = len(gain.by_seed)
    verdict = str(gain.verdict) if seeds >= LEAST_SEEDS else f"{seeds} seeds are too few for a verdict"
    return _points(100 * gain.mean, 100 * gain.low, 100 * gain.high, verdict)


def _of(found: Comparison) -> str:
    """The same of a comparison that is in points already."""
    return _points(found.mean, found.low, found.high, str(found.verdict))


def _points(mean: float, low: float, high: float, verdict: str) -> str:
    touches = verdict != "INCONCLUSIVE" and 0 in (round(low, 1), round(high, 1))
    digits = 2 if touches else 1  # an end that is rounded to zero would contradict the verdict
    mean, low, high = (round(value, digits) + 0.0 for value in (mean, low, high))  # -0.04 is no -0.0
    return f"{mean:+.{digits}f} points ({low:+.{digits}f} to {high:+.{digits}f}), {verdict}"


def _count(gains: Sequence[Estimate]) -> str:
    counts = [(word, sum(str(gain.verdict) == word for gain in gains)) for word in ("BEATS", "INCONCLUSIVE", "LOSES")]
    return ", ".join(f"{count} {word}" for word, count in counts if count)


def _everywhere(method: str, baseline: str = "hard") -> str:
    gains = [methods(*budget, baseline).gain(method) for budget in BUDGETS]
    low, high = min(100 * gain.mean for gain in gains), max(100 * gain.mean for gain in gains)
    return f"{_count(gains)} of {len(BUDGETS)} budgets, means from {low:+.1f} to {high:+.1f} points"


def _missing_class() -> str:
    found = study.results("missing-class", student="resnet8", teacher="resnet20-fashion", images=10_000)
    soft, hard = (found.score(name, "excluded_class_accuracy").mean for name in ("kd alpha=0 T=4", "hard"))
    soft_of_cnn, means_of_cnn = (
        [
            100 * fmean(float(row[column]) for row in missing_class.load() if row["labels"] == labels)
            for column in ("recognised", "recognised_with")
        ]
        for labels in ("soft labels", "class means")
    )
    return (
        f"A class that no picture showed: {100 * soft:.0f} % right by soft labels, {100 * hard:.0f} % by hard ones; "
        f"with a smaller student {soft_of_cnn[0]:.0f} % by soft labels, {means_of_cnn[0]:.0f} % by labels that only "
        f"say which classes are alike (after a constant was added to its logit {soft_of_cnn[1]:.0f} and "
        f"{means_of_cnn[1]:.0f} %)."
    )


@lru_cache
def grid() -> Results:
    """The map of alpha and T."""
    return study.results("grid", student="resnet8", images=10_000, folder=older_search.folder())


def _grid(alpha: float, temperature: float) -> Estimate:
    return grid().gain(grid().grid[alpha, temperature])


def _cells(*temperatures: float) -> list[Estimate]:
    """The cells of the map with these temperatures and alpha up to one half."""
    return [_grid(alpha, temperature) for alpha in (0.0, 0.1, 0.5) for temperature in temperatures]


def plateau() -> tuple[float, float]:
    """The lowest and the highest mean gain of the map with T from 2 up and alpha up to one half, in points."""
    means = [100 * cell.mean for cell in _cells(2.0, 4.0, 8.0, 16.0)]
    return min(means), max(means)


def _temperature() -> str:
    low, high = plateau()
    cold = [100 * cell.mean for cell in _cells(1.0)]
    return (
        f"From T = 2 up, with alpha to one half, the twelve cells of the map gain {low:+.1f} to {high:+.1f} points "
        f"({_count(_cells(2.0, 4.0, 8.0, 16.0))}); at T = 1 {min(cold):+.1f} to {max(cold):+.1f} "
        f"({_count(_cells(1.0))})."
    )


def _best(found: Results) -> tuple[float, float]:
    """In per cent: the best method's mean accuracy, and the teacher's."""
    best = max(found.score(name).mean for name in found.methods)
    return 100 * best, of_teacher(found)


def of_teacher(found: Results) -> float:
    """The accuracy of the teacher of these runs, in per cent."""
    return 100 * float(found.runs("hard")[0]["teacher_accuracy"])


def best_against_teacher() -> list[tuple[float, float]]:
    """For each budget, in per cent: the best method's mean accuracy, and the teacher's."""
    return [_best(methods(*budget)) for budget in BUDGETS]


def best_of_long_runs() -> dict[tuple[str, int], tuple[float, float]]:
    """The same of the trainings with all images, by student and number of epochs."""
    found = [long_runs(*budget) for budget in LONG]
    return {
        (budget[0], int(long.runs("hard")[0]["epochs"])): _best(long) for budget, long in zip(LONG, found, strict=True)
    }


def over_its_teacher() -> Comparison:
    """A ResNet-8 taught by logits for sixty epochs against its teacher, in points, over seeds and test images.

    It is the nearest of all best students, chosen after the fact, so it is one of as many comparisons as there are.
    """
    given = teacher_outputs("test")
    of_teacher = 100.0 * (given.logits.argmax(dim=1) == given.labels).numpy()
    taught = {seed: 100.0 * right for seed, right in long_runs(part="sixty-epochs").right("kd").items()}
    comparisons = len(BUDGETS) + len(LONG)
    return verdict.compare_samples(taught, dict.fromkeys(taught, of_teacher), comparisons=comparisons)


def _beats_its_teacher() -> str:
    pairs = [*best_against_teacher(), *best_of_long_runs().values()]
    ahead = sum(student > teacher for student, teacher in pairs)
    nearest = over_its_teacher()
    noise = claims_results.load("noise")
    gains = [
        noise.gain(name, "teacher", comparisons=2) for name in ("answers, same pictures", "wrong labels, smoothed")
    ]
    return (
        f"With right labels, the mean of {ahead} of the study's {len(pairs)} best students is above the teacher's; "
        f"the nearest, a ResNet-8 after sixty epochs: {_of(nearest)}, one of {nearest.comparisons}. A larger student, "
        f"resnet50-fashion-v2, is ahead of each of its two teachers (one run). With two of five "
        f"labels wrong: {points(gains[0])}; smoothed labels without a teacher: {points(gains[1])}."
    )


def _resnets() -> str:
    long, found = long_runs("resnet18", "resnet50-fashion-v2", "adamw"), methods(*BUDGETS[-1])
    titles = {"standardized": "standardized logits", "vid": "VID", "similarity": "similarities of samples"}
    others = "; ".join(f"{title} {points(found.gain(name))}" for name, title in titles.items())
    return (
        f"By logits, with 10,000 images, {points(found.gain('kd'))}, and over label smoothing "
        f"{points(methods(*BUDGETS[-1], 'label-smoothing').gain('kd'))}; with RKD beside them, "
        f"{points(found.gain('kd+rkd'))}. Without plain logits nothing shows: {others}. With all images, twelve epochs "
        f"and a more accurate teacher, by logits {points(long.gain('kd'))}; with RKD beside them, "
        f"{points(long.gain('kd+rkd'))}. On ImageNet it was not tested."
    )


def _cheaper() -> str:
    found, (*_, half, longest) = claims_results.load("length"), claims_length.LENGTHS
    names = claims_length.name(claims_length.LOGITS, half), claims_length.name(claims_length.LABELS, longest)
    same = claims_length.name(claims_length.LOGITS, longest)
    return (
        f"No saving is shown. {half} passes with logits against {longest} with labels: "
        f"{points(found.gain(*names, comparisons=4))}; {longest} with both: "
        f"{points(found.gain(same, names[1], comparisons=4))}. The teacher's training is not counted in."
    )


def _data_free() -> str:
    found = claims_results.load("pictures")
    names = ("made by the teacher", "drawn shapes", "handwritten digits", "noise")
    scores = ", ".join(f"{name} {found.mean(name):.0f} %" for name in names)
    return f"Real pictures {found.mean('real pictures'):.0f} %, {scores}."


def _several() -> str:
    own, same, mean = several_results.load("own"), several_results.load("same"), ["mean of probabilities"]
    pairs = ((own, "best single"), (own, "one teacher of all images"), (same, "three times as long"))
    alone, joined, equal = (points(rows.compare(over, mean, comparisons=len(pairs))[0]) for rows, over in pairs)
    return (
        f"Pictures of their own, over the best single one: {alone}; over one that saw all of them: {joined}. The same "
        f"pictures, over one with equal compute: {equal}."
    )


def _modalities() -> str:
    results, pair = modalities_results.load(), modalities.PAIRS[0]
    gains = {gain.title: gain.comparison for gain in (*results.gains(pair), *results.later(pair))}
    few, all_labels = results.first(pair).comparison, gains["all labels and pairs over all labels"]
    among = gains["pairs over few labels alone"]
    same, others = (
        gains[f"pairs, a teacher of {who}, over few labels alone"] for who in ("the same three", "three others")
    )
    parts = [_of(one) for one in (few, same, others, all_labels)]
    return (
        f"A gyroscope taught by an accelerometer, with 14 labels: {parts[0]} by itself and {among.verdict} as one of "
        f"{among.comparisons} questions; with pairs of three persons by a teacher of these: {parts[1]}; by one of "
        f"three others: {parts[2]}; with all labels: {parts[3]}."
    )


def _detection() -> str:
    rows = detection.read()  # all: to leave out a seed that diverged, as `complete` does, would be to choose seeds
    parts = []
    for title, value in (("AP50", "test_ap50"), ("AP75", "test_ap75")):
        table = detection.gains(rows, value).set_index("method")
        each = (f"{method} {_points_of(table.loc[method])}" for method in ("heat map", "features"))
        parts.append(f"{title}: {'; '.join(each)}")
    return f"Small detectors, {'. '.join(parts)}."


def _points_of(row: pd.Series) -> str:
    return _points(row["gain"], row["low"], row["high"], row["verdict"])


def by_better_teacher() -> Results:
    """The same budget as `main`, by a ResNet-50 that is more accurate than the ResNet-20."""
    return methods("resnet8", "resnet50-fashion-v2", 10_000)


def better_teacher(method: str) -> Comparison:
    """A ResNet-8 by one method, taught by `resnet50-fashion-v2` against a ResNet-20, in points; 10,000 images.

    The seeds and the search for settings are the same; the interval is over seeds and test images, and holds together
    with those of the other methods and of hard labels, which show what the second search alone has changed.
    """
    better = by_better_teacher()
    by_better, by_smaller = ({seed: 100.0 * r for seed, r in found.right(method).items()} for found in (better, main()))
    shared = {seed: by_smaller[seed] for seed in by_better}
    return verdict.compare_samples(by_better, shared, comparisons=len(better.methods) + 1)


def _larger() -> str:
    found = teacher_results.load()
    names = ("resnet8", "resnet14", "resnet20", "resnet32", "resnet56")
    gains = ", ".join(f"{found.gain('resnet8', name).comparison.mean:+.1f}" for name in names)
    answers = {student: dict(found.answers(student)) for student in found.students}
    by_logits, by_vid = better_teacher("kd"), better_teacher("vid")

    def over(student: str, question: str) -> str:
        one = answers[student][question]
        return f"{_of(one)}, one of {one.comparisons}"

    return (
        f"Teachers of 8, 14, 20, 32 and 56 layers, trained alike, are worth {gains} points to a ResNet-8 with 2,000 "
        f"images; the third over the first: {over('resnet8', teacher_results.LARGER)}; the last over the first: "
        f"{over('resnet8', teacher_results.LARGEST_OF_FIVE)}; to the article's student "
        f"{over('article-student', teacher_results.LARGEST_OF_FIVE)}. "
        "With 10,000, one of its own size against a ResNet-20, both of all images: "
        f"{points(main('kd').gain('own-size'))}; a ResNet-50 that is right on {of_teacher(by_better_teacher()):.1f} % "
        f"against it ({of_teacher(main()):.1f}): logits {_of(by_logits)}, VID {_of(by_vid)}, each one of "
        f"{by_logits.comparisons}."
    )


def _combined() -> str:
    titles = {"kd+rkd": "RKD", "kd+hint": "a hint", "kd+fsp": "FSP"}
    gains = "; ".join(f"{title} {points(main('kd').gain(name))}" for name, title in titles.items())
    long, larger = (long_runs(*pair, baseline="kd").gain("kd+rkd") for pair in (LONG[0], LONG[2]))
    return (
        f"Beside logits, over logits: {gains}; RKD with settings of an older search: "
        f"{points(main_by_older_search('kd').gain('kd+rkd'))}. RKD: {_everywhere('kd+rkd', 'kd')}; with all images, "
        f"twelve epochs: {points(long)}; a ResNet-18 there, with settings of its own: {points(larger)}."
    )


def _methods(names: Sequence[str]) -> str:
    return "; ".join(f"{main().title(name)} {points(main().gain(name))}" for name in names) + "."


def _answers() -> str:
    found = claims_results.load("pictures")
    titles = {"best three": "three with theirs", "best one": "one with its own", "best class alone": "its name alone"}
    parts = [f"{titles[name]} {points(found.gain(name, 'real pictures', comparisons=3))}" for name in ANSWERS]
    return f"Against all ten probabilities: the best {'; '.join(parts)}."


def _small_gain() -> str:
    pictures = claims_results.load("pictures")
    among = pictures.compare("labels")[0].comparison
    alone = points(pictures.gain("real pictures", "labels"))
    return f"{alone} taken alone, {among.verdict} as one of {among.comparisons}"


def _sound_teacher() -> str:
    return points(claims_results.load("faults").gain("sound teacher", "labels"))


def _no_better() -> str:
    comparisons = 6  # in the figure of lesson 12
    return points(several_results.load("same").compare("hard labels", ["best single"], comparisons=comparisons)[0])


def _searched() -> str:
    judged = search_results.load_judged()
    defaults, at_random = (_of(judged.gain(name)) for name in ("defaults", "random search"))
    proxies = search_results.load_proxies()  # a ResNet-8 at the rate of the older search is among them
    whole = proxies.students.index("resnet8w16")
    at_one = {seed: float(scores[whole]) for seed, scores in proxies.accuracies.items()}
    found = {seed: judged.accuracies("found", "validation_accuracy")[seed] for seed in at_one}
    alone, among = (verdict.compare(found, at_one, comparisons=n, same_unit=True) for n in (1, 4))  # as lesson 13
    return (
        f"A search of four settings with 1,000 pictures, over untuned defaults: {defaults}; over a random search: "
        f"{at_random}; over the usual alpha and T at a learning rate of 1, on validation: "
        f"{_of(alone)} taken alone, {among.verdict} as one of {among.comparisons}. On the map of alpha and T none beat "
        "the default."
    )


def _inherited() -> str:
    found = claims_results.load("faults")
    column = "sandals_as_sneakers"
    answers, half = (found.mean(f"renamed: {name}", column) for name in ("answers", "half labels"))
    marks = [found.mean(f"mark: {name}", "marked_as_bags") for name in ("clean pictures", "a tenth marked")]
    return (
        f"A renamed class is inherited: {answers:.0f} % from answers alone, {half:.0f} % with half labels. A mark: "
        f"{marks[0]:.0f} % through clean pictures, {marks[1]:.0f} % where a tenth carries it."
    )


def _language() -> str:
    letters = language_results.load().answer(language.FORWARD, language.HARD, "test_nats").comparison
    few, hard = (
        _of(sentence_results.load().answer(sentences.BUDGETS[0], other).comparison)
        for other in (sentences.FEW, sentences.HARD)
    )
    return (
        f"A small model of letters by forward KL, over hard labels: {letters.mean:+.2f} nats a name "
        f"({letters.low:+.2f} to {letters.high:+.2f}), {letters.verdict} (fewer are better). A tiny classifier "
        f"by a pretrained transformer's soft answers, over {sentences.BUDGETS[0]} labels of each kind: {few}; over its "
        f"hard answers: {hard}. No student was a transformer."
    )


def _said(text: str) -> Callable[[], str]:
    return lambda: text


CLAIMS = (
    Claim(
        "Large networks do not fit small devices.",
        HOLDS,
        _said("A ResNet-20 exceeds 256 kB of flash; a ResNet-8 fits. Both need the same RAM."),
        ("01", "11"),
    ),
    Claim(
        "Pruning and fewer bits make a network smaller and faster.",
        CONDITIONS,
        _said(
            "Zeros alone do neither; removed channels do both; how fast 8 bits are, file, runtime and processor decide."
        ),
        ("02", "11"),
        ("compression-resnet20-fashion-2000", "sweep-compression-resnet20-fashion"),
    ),
    Claim(
        "Distillation makes a network smaller and faster.",
        NOT_HERE,
        _said("It changes no size: you choose a small student, and distillation can make that one better."),
        ("01", "02"),
    ),
    Claim(
        "Soft labels say more than hard ones: what a picture is like.",
        HOLDS,
        _missing_class,
        ("03",),
        (
            "missing-class-resnet8-resnet20-fashion-10000",
            "missing-class-labels-article-student-resnet20-fashion-10000",
        ),
    ),
    Claim(
        "A student with a teacher beats the same student on labels alone (logits).",
        CONDITIONS,
        lambda: (
            f"{_everywhere('kd')}; with 2,000 images and a small CNN: {_small_gain()}; with 1,000, T = 4 and the "
            f"higher of two rates: {_sound_teacher()}; of a teacher that knows no more than the student learns alone: "
            f"{_no_better()}; with all images, twelve epochs: "
            f"{points(long_runs().gain('kd'))}; sixty: {points(long_runs(part='sixty-epochs').gain('kd'))}."
        ),
        ("05", "08", "12", "16"),
        (*METHODS, TWELVE_EPOCHS, SIXTY_EPOCHS, "claims-pictures", "claims-faults", "several-same"),
    ),
    Claim(
        "The gain is what the teacher knows, and not just softer labels.",
        CONDITIONS,
        lambda: (
            f"Logits over label smoothing: {_everywhere('kd', 'label-smoothing')}. A ResNet-8 with 10,000 images, by "
            f"an untrained teacher over hard labels: {points(main().gain('untrained'))}; by logits over that: "
            f"{points(main('untrained').gain('kd'))}."
        ),
        ("05", "08", "16"),
        METHODS,
    ),
    Claim(
        "The temperature has to be tuned.",
        CONDITIONS,
        _temperature,
        ("04", "05"),
        (GRID,),
    ),
    Claim(
        "The student needs the true labels beside the soft ones (alpha = 0.5).",
        NOT_HERE,
        lambda: f"Without any label, T = 4: {points(_grid(0.0, 4.0))}; alpha = 0.5: {points(_grid(0.5, 4.0))}.",
        ("05",),
        (GRID,),
    ),
    Claim(
        "Features of hidden layers teach more than the answers alone.",
        CONDITIONS,
        lambda: (
            f"VID over logits: {_everywhere('vid', 'kd')}. Far ahead in one case: a ResNet-8 with 1,000 images. With "
            f"10,000 a hint over logits: {points(main('kd').gain('hint'))}."
        ),
        ("06", "08"),
        METHODS,
    ),
    Claim(
        "Relations between layers teach (FSP, correlation, mutual information).",
        CONDITIONS,
        lambda: _methods(("fsp", "layer-correlation", "layer-information")),
        ("07",),
        (MAIN,),
    ),
    Claim(
        "Combined methods are better than logits alone.",
        CONDITIONS,
        _combined,
        ("08",),
        (*METHODS, OLDER, TWELVE_EPOCHS, "long/methods-resnet18-resnet50-fashion-v2-55000-adamw"),
    ),
    Claim(
        "A ResNet-50 teaches a ResNet-18.",
        CONDITIONS,
        _resnets,
        ("08",),
        (
            "methods-resnet18-resnet50-fashion-1000",
            "methods-resnet18-resnet50-fashion-10000",
            "long/methods-resnet18-resnet50-fashion-v2-55000-adamw",
        ),
    ),
    Claim(
        "A larger teacher makes a better student.",
        NOT_HERE,
        _larger,
        ("08", "10"),
        (MAIN, BETTER, "teachers-students-2000"),
    ),
    Claim(
        "A student may beat its teacher.",
        NOT_HERE,
        _beats_its_teacher,
        ("08", "14", "16"),
        (
            *METHODS,
            TWELVE_EPOCHS,
            SIXTY_EPOCHS,
            "long/methods-resnet18-resnet50-fashion-v2-55000-adamw",
            "claims-noise",
        ),
    ),
    Claim("Training becomes cheaper.", NOT_HERE, _cheaper, ("16",), ("claims-length",)),
    Claim(
        "The teacher can label data that nobody has labelled.",
        CONDITIONS,
        _modalities,
        ("12", "14"),
        ("modalities", GRID, "several-own"),
    ),
    Claim("The data of the teacher are not needed.", NOT_HERE, _data_free, ("16",), ("claims-pictures",)),
    Claim("The best few answers of a service are enough.", CONDITIONS, _answers, ("16",), ("claims-pictures",)),
    Claim(
        "Detection in real time profits as well.",
        CONDITIONS,
        _detection,
        ("11",),
        ("detection-8-28",),
    ),
    Claim(
        "Several teachers teach better than one.",
        CONDITIONS,
        _several,
        ("12",),
        ("several-own", "several-same"),
    ),
    Claim(
        "A machine finds better settings (automated distillation).",
        CONDITIONS,
        _searched,
        ("13",),
        ("search-judged-resnet8-resnet20-fashion-1000", "search-replay-resnet8-resnet20-fashion-10000"),
    ),
    Claim(
        "A teacher of one modality teaches a student of another.",
        CONDITIONS,
        _said(
            "With few labels by much on average, conclusively as a question by itself; with all labels nothing that "
            "shows; mixed-up pairs show no gain, or do harm."
        ),
        ("14",),
        ("modalities",),
    ),
    Claim(
        "With clean pictures and right labels a distilled network is safe.",
        NOT_HERE,
        _inherited,
        ("16",),
        ("claims-faults",),
    ),
    Claim(
        "Distillation protects the data of the teacher.",
        UNTESTED,
        _said("Others found membership of the teacher's data through a student (Jagielski and others, 2023)."),
    ),
    Claim(
        "The same holds for transformers and language.",
        CONDITIONS,
        _language,
        ("17",),
        ("language", "sentences"),
    ),
)


class Table:
    """The claims as a table in Markdown."""

    def __init__(self, claims: Sequence[Claim]) -> None:
        self.claims = tuple(claims)

    def _repr_markdown_(self) -> str:
        return "\n".join(
            ["| claim | verdict | what was found | evidence |", "|---|---|---|---|", *map(_row, self.claims)]
        )

    def __repr__(self) -> str:
        counts = ((word, sum(one.verdict == word for one in self.claims)) for word in VERDICTS)
        return f"{len(self.claims)} claims: " + ", ".join(f"{count} {word}" for word, count in counts)


def _row(claim: Claim) -> str:
    links = [
        f"[lesson {number}]({notebooks.find(number).name})" if number != "16" else "above" for number in claim.lessons
    ]
    rows = _short(claim.rows)
    evidence = "; ".join([", ".join(links), *([rows] if rows else [])]) or "none here"
    return f"| {claim.claim} | **{claim.verdict}** | {claim.found()} | {evidence} |"


def _short(rows: Sequence[str]) -> str:
    """The names of the files, the eight of the study under one."""
    names = ["`methods-*`"] if set(METHODS) <= set(rows) else []
    return ", ".join([*names, *(f"`{name}`" for name in rows if not (names and name in METHODS))])


def table() -> Table:
    """All claims with their verdicts, what was found, and where."""
    return Table(CLAIMS)
