"""What the rows of the study on teachers say: who teaches best, by how much, and what of a teacher predicts it.

    results = teacher_results.load()
    for gain in results.gains("article-student"):
        print(gain)
    print(results.tau("article-student", "accuracy"))

A gain is in points of test accuracy over hard labels, or over another teacher, with the same seeds. Its interval holds
the scatter of seeds and of test images; the teachers are those few networks, one of each kind. Several comparisons are
one family (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from course.experiments.rows import refuse_diverged, refuse_twice
from course.experiments.teacher_students import HARD, RUN_COLUMNS, SMOOTHED, STUDENTS, TRIAL_COLUMNS, Budget
from course.experiments.teachers import TEACHER_COLUMNS, teachers_path
from kdlib import verdict
from kdlib.data import data_dir
from kdlib.errors import unknown_name
from kdlib.search.task import unpack
from kdlib.study.runs_file import read_rows

if TYPE_CHECKING:
    import pandas as pd

TEST_IMAGES = 10_000
REFERENCE = "resnet20-fashion"
TITLES = {
    HARD: "hard labels",
    SMOOTHED: "label smoothing, no teacher",
    "resnet20-fashion": "ResNet-20, shipped",
    "resnet50-fashion": "ResNet-50, shipped",
    "resnet8-fashion": "ResNet-8, shipped",
    "resnet20-fashion calibrated": "ResNet-20, calibrated",
    "resnet8": "ResNet-8",
    "resnet14": "ResNet-14",
    "resnet20": "ResNet-20",
    "resnet32": "ResNet-32",
    "resnet56": "ResNet-56",
    "resnet20x2": "ResNet-20, twice as wide",
    "resnet8 of resnet32": "ResNet-8, assistant",
    "resnet20, epoch 1": "ResNet-20, one epoch",
    "resnet20 smoothed": "ResNet-20, smoothed",
    "ensemble": "three ResNet-8, 10,000",
    "resnet8 hard 0": "ResNet-8, 10,000",
    "resnet8 kd 0": "ResNet-8, 10,000, taught",
    "resnet8 shuffled 0": "ResNet-8, 10,000, badly taught",
}
STUDENT_TITLES = {"resnet8": "ResNet-8", "article-student": "article's student"}
MEASURES = {
    "accuracy": "validation accuracy (%)",
    "size": "parameters (millions, logarithmic)",
    "confidence": "mean confidence (%)",
    "calibration": "calibration error (points)",
    "entropy": "entropy at T = 4 (nats)",
}
PLAIN, LARGEST, ASSISTANT = "resnet8 hard 0", "resnet32", "resnet8 of resnet32"
LARGER, LARGEST_OF_FIVE = "larger: ResNet-20 over ResNet-8", "larger: ResNet-56 over ResNet-8"
QUESTIONS = (  # what was asked before the runs: a title, a teacher, and the one that it is held against
    (LARGER, "resnet20", "resnet8"),
    ("larger: ResNet-32 over ResNet-8", LARGEST, "resnet8"),
    (LARGEST_OF_FIVE, "resnet56", "resnet8"),
    ("wider: ResNet-20, twice as wide, over ResNet-20", "resnet20x2", "resnet20"),
    ("much larger: ResNet-50 over ResNet-20, both shipped", "resnet50-fashion", REFERENCE),
    ("smaller, but as accurate: ResNet-8 over ResNet-20, both shipped", "resnet8-fashion", REFERENCE),
    ("trained longer: ResNet-20, shipped, over ResNet-20", REFERENCE, "resnet20"),
    ("stopped early: ResNet-20 after one epoch over four", "resnet20, epoch 1", "resnet20"),
    ("label smoothing: ResNet-20 with over without", "resnet20 smoothed", "resnet20"),
    ("calibrated: ResNet-20 over itself as it was", "resnet20-fashion calibrated", REFERENCE),
    ("a chain: ResNet-8, assistant, over its teacher ResNet-32", ASSISTANT, LARGEST),
    ("taught or not: ResNet-8, assistant, over ResNet-8", ASSISTANT, "resnet8"),
    ("three together: three ResNet-8, 10,000, over one of them", "ensemble", PLAIN),
    ("badly taught: ResNet-8, 10,000, over the same on labels alone", "resnet8 shuffled 0", PLAIN),
)


@dataclass(frozen=True)
class TeacherFacts:
    """What is known of a teacher without any student, read on the validation split.

    accuracy, confidence: in per cent. size: parameters in millions. calibration: the expected calibration error, in
    points. entropy: of its answers at T 4, in nats.
    """

    name: str
    kind: str
    accuracy: float
    size: float
    confidence: float
    calibration: float
    entropy: float

    @property
    def title(self) -> str:
        """How figures and tables call it."""
        return TITLES[self.name]

    def measure(self, name: str) -> float:
        """One of MEASURES; ValueError for another name."""
        if name not in MEASURES:
            raise unknown_name("measure", name, MEASURES)
        return float(getattr(self, name))


@dataclass(frozen=True, eq=False)
class Arm:
    """The students of one teacher, or of hard labels.

    accuracies: test accuracy by seed, in per cent. right: by seed, 100 for each test image that was answered rightly,
    else 0, so that differences are in points. temperature: the chosen one. diverged: other seeds, with their errors.
    """

    student: str
    teacher: str
    accuracies: dict[int, float]
    right: dict[int, np.ndarray]
    temperature: float | None
    learning_rate: float
    diverged: dict[int, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """How figures and tables call the teacher."""
        return TITLES[self.teacher]

    @property
    def mean(self) -> float:
        """The mean accuracy over the seeds, in per cent."""
        return sum(self.accuracies.values()) / len(self.accuracies)


@dataclass(frozen=True)
class Trial:
    """One trial, by which a setting was chosen: a single run. accuracy: on the validation split, in per cent."""

    student: str
    teacher: str
    learning_rate: float
    temperature: float | None
    accuracy: float


@dataclass(frozen=True, eq=False)
class Gain:
    """One arm over another with the same seeds, in points."""

    arm: Arm
    baseline: Arm
    comparison: verdict.Comparison

    @property
    def title(self) -> str:
        """The teacher whose students these are."""
        return self.arm.title

    def __str__(self) -> str:
        found = self.comparison
        return f"{self.title}: {found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f}) {found.verdict}"


@dataclass(frozen=True)
class Tau:
    """Kendall's tau-b between a measure of teachers and the gain of their students, the mean over the seeds.

    low, high: 95 % interval, which covers other seeds of the students. teachers: how many; they are fixed.
    """

    measure: str
    value: float
    low: float
    high: float
    teachers: int

    def __str__(self) -> str:
        return f"{self.measure}: tau {self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f}; {self.teachers} teachers)"


@dataclass(frozen=True, eq=False)
class TeacherResults:
    """All finished runs by student and teacher, and what is known of each teacher.

    budget: of the students. trials: by which settings were chosen, single runs.
    """

    facts: dict[str, TeacherFacts]
    arms: dict[tuple[str, str], Arm]
    budget: Budget
    trials: tuple[Trial, ...] = ()

    @cached_property
    def students(self) -> list[str]:
        """The students with runs of hard labels and of a teacher that was measured."""
        return [name for name in STUDENTS if (name, HARD) in self.arms and self.teachers(name)]

    def run(self, student: str) -> list[str]:
        """The teachers of a student that have all the seeds of hard labels, in the order of TITLES.

        Raises ValueError where a seed of hard labels diverged.
        """
        seeds = self._arm(student, HARD).accuracies.keys() if (student, HARD) in self.arms else set()
        return [name for name in self.tried(student) if self.arms[student, name].accuracies.keys() == seeds]

    def tried(self, student: str) -> list[str]:
        """The teachers of a student of which there is a run, in the order of TITLES."""
        return [name for name in TITLES if name != HARD and (student, name) in self.arms]

    def family(self, student: str) -> int:
        """How many teachers were tried for a student, those with missing seeds as well: intervals hold for all."""
        return len(self.tried(student))

    def teachers(self, student: str) -> list[str]:
        """Those among them that were measured, too: where a gain is held against something, it is against that."""
        return [name for name in self.run(student) if name in self.facts]

    def gain(self, student: str, teacher: str, over: str = HARD, comparisons: int = 1) -> Gain:
        """One teacher's students over those of hard labels, or of another teacher.

        comparisons: of how many made together. Raises ValueError for what was not run, and where a seed diverged.
        """
        arm, baseline = self._arm(student, teacher), self._arm(student, over)
        found = verdict.compare_samples(arm.right, baseline.right, comparisons=comparisons)
        return Gain(arm, baseline, found)

    def gains(self, student: str, over: str = HARD) -> list[Gain]:
        """Every teacher of a student over hard labels, or over one of them, as one family, the largest gain first."""
        names, count = [name for name in self.run(student) if name != over], self.family(student) - (over != HARD)
        found = [self.gain(student, name, over, count) for name in names]
        return sorted(found, key=lambda one: -one.comparison.mean)

    def answers(self, student: str) -> list[tuple[str, verdict.Comparison]]:
        """The questions that were asked before the runs, and what the students say, as one family.

        A question about a teacher that was not run for this student is left out.
        """
        run = self.run(student)
        asked = [one for one in QUESTIONS if one[1] in run and one[2] in run]
        return [(title, self.gain(student, one, over, len(asked)).comparison) for title, one, over in asked]

    def _arm(self, student: str, teacher: str) -> Arm:
        if (student, teacher) not in self.arms:
            what = f"{STUDENT_TITLES.get(student, student)} of {TITLES.get(teacher, teacher)}"
            raise ValueError(f"{what} was not run. Run: python -m course.experiments.teachers students")
        refuse_diverged(f"{student} of {teacher!r}", self.arms[student, teacher].diverged)
        return self.arms[student, teacher]

    def why_left_out(self, student: str, teacher: str) -> str:
        """Why a teacher is not among those of `run`, in two words."""
        if (student, teacher) not in self.arms:
            return "not run"
        return "diverged" if self.arms[student, teacher].diverged else "seeds missing"

    def tau(self, student: str, measure: str, without: Sequence[str] = ()) -> Tau:
        """Does the gain follow this measure of the teacher? without: teachers that are left out.

        Raises ValueError for an unknown measure and for less than four teachers.
        """
        names = [name for name in self.teachers(student) if name not in without]
        if len(names) < 4:
            raise ValueError(f"An order of {len(names)} teachers says nothing; at least four are needed.")
        values = [self.facts[name].measure(measure) for name in names]
        value, low, high = mean_tau(values, self._by_seed(student, names))
        return Tau(measure, value, low, high, len(names))

    def _by_seed(self, student: str, teachers: Sequence[str]) -> np.ndarray:
        """Accuracies, seeds x teachers. Within a seed they are in the order of the gains."""
        seeds = sorted(self.arms[student, HARD].accuracies)
        return np.array([[self.arms[student, name].accuracies[seed] for name in teachers] for seed in seeds])

    def reliability(self, student: str, without: Sequence[str] = ()) -> float:
        """Kendall's tau between the gains of one seed and the mean gains of the others, the mean over the seeds.

        A yardstick for `tau`, which scores a measure against single seeds, too: what the other seeds know of a seed's
        order of the teachers.
        """
        from scipy.stats import kendalltau

        names = [name for name in self.teachers(student) if name not in without]
        by_seed = self._by_seed(student, names)
        rest = ((by_seed.sum(0) - by_seed) / (len(by_seed) - 1)).round(9)  # what rounding tells apart is equal
        return float(np.mean([kendalltau(one, others).statistic for one, others in zip(by_seed, rest, strict=True)]))

    def temperatures(self, student: str) -> pd.DataFrame:
        """The trials of the teachers that were run: validation accuracy in per cent by teacher and temperature.

        Each number is a single run, all of them with one seed.
        """
        import pandas as pd

        rows = [
            {"teacher": TITLES[one.teacher], "temperature": f"T = {one.temperature:g}", "accuracy": one.accuracy}
            for one in self.trials
            if one.student == student and one.temperature is not None and one.teacher in self.run(student)
        ]
        return pd.DataFrame(rows).pivot_table("accuracy", "teacher", "temperature", sort=False)

    def table(self) -> pd.DataFrame:
        """The teachers in the order of their validation accuracy: what is known of each, and the gains in points."""
        import pandas as pd

        rows = []
        for one in sorted(self.facts.values(), key=lambda one: one.accuracy):
            row: dict[str, object] = {
                "teacher": one.title,
                "parameters": f"{one.size:.2f} M",
                "accuracy": one.accuracy,
                "confidence": one.confidence,
                "calibration": one.calibration,
                "entropy": one.entropy,
            }
            for student in self.students:
                known = one.name in self.teachers(student)
                value = self.gain(student, one.name).comparison.mean if known else math.nan
                row[f"gain, {STUDENT_TITLES[student]}"] = value
            rows.append(row)
        return pd.DataFrame(rows)


def mean_tau(values: Sequence[float], by_seed: np.ndarray) -> tuple[float, float, float]:
    """Kendall's tau-b between a measure of some teachers and their students' accuracies, and its 95 % interval.

    values: one for each teacher. by_seed: seeds x teachers. The mean of the taus of the seeds, with Student's t
    interval, cut at -1 and 1. It covers other seeds; the teachers are these.
    """
    from scipy.stats import kendalltau, t

    taus = np.nan_to_num([kendalltau(values, row).statistic for row in by_seed])  # all equal: no order
    mean, count = float(taus.mean()), len(taus)
    margin = float(t.isf(0.025, count - 1) * taus.std(ddof=1) / math.sqrt(count))
    return mean, max(-1.0, mean - margin), min(1.0, mean + margin)


# --- reading the rows


@lru_cache(maxsize=4)
def load(folder: Path | None = None, images: int = 2_000) -> TeacherResults:
    """The finished runs in a folder; default, the shipped ones.

    Raises FileNotFoundError where there are none, ValueError for files that cannot be read.
    """
    folder = folder or data_dir() / "results"
    path = Budget(images).path("teachers-students", folder)
    students = "students" + (f" --images {images}" if images != Budget.images else "")
    for wanted, command in ((teachers_path(folder), "teachers"), (path, students)):
        if not wanted.exists():
            raise FileNotFoundError(
                f"There is no file {wanted}. Run the study first: python -m course.experiments.teachers {command}"
            )
    facts = {row["teacher"]: _facts(row) for row in read_rows(teachers_path(folder), TEACHER_COLUMNS)}
    rows = read_rows(path, RUN_COLUMNS)
    budget = Budget(*(int(rows[0][name]) for name in ("images", "epochs", "views", "batch_size"))) if rows else Budget()
    arms = {}
    for student, teacher in dict.fromkeys((row["student"], row["teacher"]) for row in rows):
        if teacher not in TITLES:
            continue
        own = [row for row in rows if (row["student"], row["teacher"]) == (student, teacher)]
        refuse_twice(f"{student} of {teacher}", [int(row["seed"]) for row in own])
        arms[student, teacher] = _arm(own)
    chosen = Budget(images).path("choose-teachers-students", folder)
    tried = [row for row in read_rows(chosen, TRIAL_COLUMNS) if row["validation_accuracy"] and row["teacher"] in TITLES]
    return TeacherResults(facts, arms, budget, tuple(_trial(row) for row in tried))


def _facts(row: dict[str, str]) -> TeacherFacts:
    return TeacherFacts(
        name=row["teacher"],
        kind=row["kind"],
        accuracy=100 * float(row["validation_accuracy"]),
        size=float(row["parameters"]) / 1e6,
        confidence=100 * float(row["confidence"]),
        calibration=100 * float(row["calibration_error"]),
        entropy=float(row["entropy"]),
    )


def _trial(row: dict[str, str]) -> Trial:
    temperature = float(row["temperature"]) if row["temperature"] else None
    accuracy = 100 * float(row["validation_accuracy"])
    return Trial(row["student"], row["teacher"], float(row["learning_rate"]), temperature, accuracy)


def _arm(rows: Sequence[dict[str, str]]) -> Arm:
    first, finished = rows[0], [row for row in rows if row["test_accuracy"]]
    return Arm(
        student=first["student"],
        teacher=first["teacher"],
        accuracies={int(row["seed"]): 100 * float(row["test_accuracy"]) for row in finished},
        right={int(row["seed"]): 100 * unpack(row["right"], TEST_IMAGES).astype(np.float32) for row in finished},
        temperature=float(first["temperature"]) if first["temperature"] else None,
        learning_rate=float(first["learning_rate"]),
        diverged={int(row["seed"]): row["error"] for row in rows if not row["test_accuracy"]},
    )
