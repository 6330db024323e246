"""What is known of each patient: the diagnosis, the lines that cure it, hints, and the public thread behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

GITHUB = "https://github.com/"


@dataclass(frozen=True)
class Diagnosis:
    """One of the faults to choose from.

    checks: of the doctor, any of which finds it. sign: how it would show, said to who names it where it is not.
    """

    title: str
    checks: tuple[str, ...]
    sign: str


DIAGNOSES: dict[str, Diagnosis] = {
    "a": Diagnosis(
        "nothing: it is healthy",
        (),
        "It is not healthy. What does each term do to the student, and what should it do?",
    ),
    "b": Diagnosis(
        "F.kl_div gets probabilities where it takes their logarithm",
        ("loss-probabilities",),
        "Then the first argument of F.kl_div would be a softmax, and the soft loss would fall below 0.",
    ),
    "c": Diagnosis(
        "both sides of the soft loss are the teacher's",
        ("loss-ignores-teacher",),
        "Then the soft loss would be 0 from the first step, whatever the student says.",
    ),
    "d": Diagnosis(
        "the mean is taken over the classes, too",
        ("loss-reduction",),
        "Then a mean would run over the classes; a divergence is their sum, and only samples are averaged.",
    ),
    "e": Diagnosis(
        "T^2 is left out",
        ("loss-temperature",),
        "Then the way from the divergence to the loss would pass no T**2. Follow it line by line.",
    ),
    "f": Diagnosis(
        "the teacher is in train mode",
        ("teacher-mode",),
        "Then nobody would have called .eval() on the teacher, and dropout would change its answers.",
    ),
    "g": Diagnosis(
        "the teacher learns, too",
        ("teacher-gradient",),
        "Then the optimiser would hold the teacher, and its accuracy would change in the right panel.",
    ),
    "h": Diagnosis(
        "the teacher's answers belong to other pictures",
        ("teacher-pairing", "teacher-accuracy", "loss-rows", "same-view"),
        "Then an answer would be looked up by a number that means another picture, as after shuffling.",
    ),
    "i": Diagnosis(
        "a term gives the student no gradient",
        ("term-reach",),
        "Then what a term reads of the student would be detached, or computed under no_grad.",
    ),
    "j": Diagnosis(
        "a layer that should learn is not in the optimiser",
        ("optimizer-parameters",),
        "Then some layer beside the student would have weights. Does this script make one?",
    ),
    "k": Diagnosis(
        "empty places count in the loss",
        ("loss-padding",),
        "Then there would be places whose label means 'nothing here'. Are there any in these batches?",
    ),
    "l": Diagnosis(
        "the student is in eval mode",
        ("student-mode",),
        "Then .eval() would have been called on the student, and its batch norm would never see a batch.",
    ),
    "m": Diagnosis(
        "log(softmax(x)): not finite for large logits",
        ("loss-extremes",),
        "Then a logarithm would be taken of a softmax that can be 0. log_softmax cannot fail like this.",
    ),
    "n": Diagnosis(
        "the KL divergence points the other way",
        ("loss-direction",),
        "Then the student's probabilities would be the weights of the sum. Whose are they here?",
    ),
}


@dataclass(frozen=True)
class Case:
    """One patient. faults: letters of `DIAGNOSES`. cure: what stands in the script, and what should.

    seen: the figure in words. hints: the vaguest first. insight: what to learn from it. stories: of public code.
    also: letters of what follows from the faults, each with a question that leads from it to them.
    """

    number: int
    faults: tuple[str, ...]
    cure: tuple[tuple[str, str], ...]
    seen: str
    hints: tuple[str, ...]
    insight: str
    stories: tuple[tuple[str, str], ...] = ()
    shelves: bool = False
    also: Mapping[str, str] = field(default_factory=dict)

    @property
    def checks(self) -> set[str]:
        """The names under which the doctor finds the faults."""
        return {check for letter in self.faults for check in DIAGNOSES[letter].checks}


_KL = 'F.kl_div(F.log_softmax(logits / T, dim=1), teacher_probabilities, reduction="batchmean")'

CASES: dict[int, Case] = {
    case.number: case
    for case in (
        Case(
            1,
            ("b",),
            (("student_probabilities = F.softmax(", "student_probabilities = F.log_softmax("),),
            "Left: the soft term begins below minus 20 and falls further. Right: the student stays several points "
            "below hard labels alone.",
            (
                "Which values can a KL divergence have, and which has this one?",
                "Read the documentation of F.kl_div: in which form does it want each of its two arguments?",
            ),
            "A divergence is never negative. A loss that goes below its least possible value is no success, it is "
            "another loss. The gradient of this one is not 0 where both agree: it leads past the teacher's answer, to "
            "its best class alone. What the teacher knows of the other classes is thrown away.",
            (("microsoft/ProDA #20, 'It's a bug', and #43", f"{GITHUB}microsoft/ProDA/issues/20"),),
        ),
        Case(
            2,
            ("c",),
            (("log_probabilities = F.log_softmax(large_logits", "log_probabilities = F.log_softmax(output"),),
            "Left: the soft term lies on 0 in all epochs, the hard term falls. Right: the curve is that of hard "
            "labels alone, nearly.",
            (
                "Can an untrained network agree with its teacher before its first step?",
                "In which of the lines from `targets` to `soft` does the student appear?",
            ),
            "A term that is 0 from the start has nothing left to teach. The student learned from the labels alone, "
            "and well enough that nobody would have noticed without the control beside it.",
            (
                (
                    "labmlai/annotated_deep_learning_paper_implementations #66: 'it just completely stops doing the "
                    "distillation'",
                    f"{GITHUB}labmlai/annotated_deep_learning_paper_implementations/issues/66",
                ),
            ),
            also={"i": "why does the student not appear in this term?"},
        ),
        Case(
            3,
            ("d",),
            ((".mean(dim=1)", ".sum(dim=1)"),),
            "Left: the soft term begins below 1 and falls. Right: the student ends about where hard labels alone do.",
            (
                "The soft term of patient 4 begins near 6. Here it begins below 1.",
                "A divergence is a sum over classes. What does the line of `divergences` do with them?",
            ),
            "Ten classes, so the soft loss is ten times too small, and alpha no longer means what was written. "
            "reduction='mean' of F.kl_div does the same in one word. PyTorch warns of that, once.",
            (
                ("HikariTJU/LD #74: 17 classes, 17 times too small", f"{GITHUB}HikariTJU/LD/issues/74"),
                (
                    "facebookresearch/deit #116: a sum divided by numel()",
                    f"{GITHUB}facebookresearch/deit/issues/116",
                ),
                (
                    "nvidia-modelopt 0.47: the default of LogitsDistillationLoss (benchmarks/parity.py)",
                    f"{GITHUB}NVIDIA/Model-Optimizer",
                ),
            ),
        ),
        Case(
            4,
            ("f",),
            (("new_teacher(), new_student()", "new_teacher().eval(), new_student()"),),
            "Left: both terms fall. Right: the student is above hard labels alone; its teacher seems constant.",
            (
                "Compare the line that makes the networks with the same line of another patient.",
                "no_grad and requires_grad_ keep gradients away. What do they change for dropout and batch norm?",
            ),
            "no_grad is not eval. In train mode dropout makes the teacher's answers random and batch norm compares "
            "each picture with its neighbours. In this small task that does the student no harm that shows. It is "
            "still another experiment than the one that was described.",
            (
                ("vrvlive/knowlege-distillation #2", f"{GITHUB}vrvlive/knowlege-distillation/issues/2"),
                ("wuzhiyuan2000/FedAgg #2", f"{GITHUB}wuzhiyuan2000/FedAgg/issues/2"),
            ),
        ),
        Case(
            5,
            (),
            (),
            "Left: the soft term begins at about 30 and ends at about 25. Right: the student is above hard labels "
            "alone.",
            (
                "What is the least value that this soft loss can have? Put the teacher's own logits in for the "
                "student's.",
                "cross-entropy(p, q) = KL(p, q) + entropy(p). Which part depends on the student?",
            ),
            "Nothing is wrong. A cross-entropy is the divergence plus the teacher's entropy, a constant without "
            "gradient. At T = 4 it is large and times 16 it is huge. The value of a loss says little, its gradient "
            "a lot.",
            (
                (
                    "textbrewer's `kd_ce_loss` is such a cross-entropy, too (and has no T^2): benchmarks/README.md",
                    f"{GITHUB}airaria/TextBrewer",
                ),
            ),
        ),
        Case(
            6,
            ("h",),
            (("for images, _, _ in loader", "for images, _, _ in Loader(shuffle=False)"),),
            "Left: the soft term stays near 1. Right: the student ends about where hard labels alone do.",
            (
                "A student can learn its teacher's answers only if something in the picture tells them.",
                "In which order did the loader hand out the pictures when the answers were stored?",
            ),
            "Stored answers save the teacher's time and bring a new kind of mistake: an answer is only worth "
            "something with its picture. With much weight on the labels the student still learns, and wrong answers "
            "look like a strange kind of label smoothing.",
            (
                (
                    "haitongli/knowledge-distillation-pytorch #4, #9, and pull request 17",
                    f"{GITHUB}haitongli/knowledge-distillation-pytorch/issues/9",
                ),
            ),
        ),
        Case(
            7,
            ("e",),
            (('return {"soft": soft}', 'return {"soft": T**2 * soft}'),),
            "Left: the soft term falls. Right: the curve rises slowly and ends far below hard labels alone.",
            (
                "Which lines run when alpha is 0.1, and which when it is 0?",
                "By how much do gradients shrink at T = 4 if nothing makes up for it?",
            ),
            "A shortcut for a special case forgot a factor, so the loss, and with it the step, is 16 times too small. "
            "A larger learning rate would hide it here, and an optimiser such as Adam hides it without being asked.",
            (
                (
                    "torchdistill 1.1.5: `KDLoss` returns the bare divergence for alpha 0 (benchmarks/parity.py)",
                    f"{GITHUB}yoshitomo-matsubara/torchdistill",
                ),
                ("IntelLabs/distiller #122: no T*T", f"{GITHUB}IntelLabs/distiller/issues/122"),
                (
                    "keras-team/keras-io #869, and #870: left out on purpose, its author says",
                    f"{GITHUB}keras-team/keras-io/pull/870",
                ),
            ),
        ),
        Case(
            8,
            ("i", "j"),
            (
                (
                    "        student_features = student.features(images)",
                    "    student_features = student.features(images)",
                ),
                ("SGD(student.parameters(),", "SGD([*student.parameters(), *projector.parameters()],"),
            ),
            "Left: labels and teacher's answers fall, the teacher's layer does not. Right: the student is above hard "
            "labels alone.",
            (
                "The hint does not fall. Which weights could make it smaller, and who moves them?",
                "Two things are wrong: one about what is computed under no_grad, one about the optimiser.",
            ),
            "Each fault hides the other: the hint cannot teach the student, and the layer between them cannot learn. "
            "The other terms do their work, so the accuracy is fine. (Repaired, with weight 1, the hint costs 0.6 "
            "points, 0.2 to 1.0, taken alone: only now has it been tested.)",
            (
                ("Tencent/YOLO-Master, pull request 240", f"{GITHUB}Tencent/YOLO-Master/pull/240"),
                (
                    "roymiles/Simple-Recipe-Distillation #1: 'an oversight'",
                    f"{GITHUB}roymiles/Simple-Recipe-Distillation/issues/1",
                ),
            ),
        ),
        Case(
            9,
            ("k", "l"),
            (
                ("student.eval()", "student.train()"),
                ("soft = divergences.mean()", "soft = divergences[labels != -100].mean()"),
            ),
            "Left: both terms fall. Right: the student is slightly above hard labels alone.",
            (
                "What does the teacher say about an empty place, and who has to learn it?",
                "Two things are wrong: one about empty places, one about the author's look before training.",
            ),
            "Cross-entropy leaves out the label -100 by itself, so people forget that a divergence does not. And a "
            "look at the student before training left it in eval mode, in which batch norm keeps its first averages. "
            "Neither shows in a curve.",
            (
                ("peremartra/optipfair #34", f"{GITHUB}peremartra/optipfair/issues/34"),
                (
                    "linkedin/Liger-Kernel, pull request 974: ignore_index was 'accepted but never used'",
                    f"{GITHUB}linkedin/Liger-Kernel/pull/974",
                ),
                (
                    "pytorch/ignite #746: the example of the front page ends up in eval mode",
                    f"{GITHUB}pytorch/ignite/issues/746",
                ),
            ),
            shelves=True,
        ),
        Case(
            10,
            ("g", "m"),
            (
                ("SGD([*student.parameters(), *teacher.parameters()],", "SGD(student.parameters(),"),
                ("F.softmax(teacher(images) / T", "F.softmax(teacher(images).detach() / T"),
                ("soft = (teacher_probabilities * ratio).sum(dim=1).mean()", f"soft = {_KL}"),
                ("    ratio = teacher_probabilities.log() - student_probabilities.log()\n", ""),
                ("    student_probabilities = F.softmax(logits / T, dim=1)\n", ""),
            ),
            "Left: the soft term is near 0 after a few epochs. Right: its teacher has fallen far below its 87 % in "
            "the first epoch, and the student stays far below hard labels alone.",
            (
                "Two networks can agree because one learns from the other, or because both give way.",
                "Two things are wrong: one about who learns, one about a logarithm that this run does not fail on.",
            ),
            "Agreement is no aim in itself. Both moved: the teacher fell from 87 % to less than 50 %. And the "
            "logarithm of a softmax waits for the first logit that is large enough: then 0 times minus infinity is "
            "NaN, and so are all weights.",
            (
                (
                    "garlic-byte/yolov8_distillation #1: 'the teacher has to learn as well'",
                    f"{GITHUB}garlic-byte/yolov8_distillation/issues/1",
                ),
                ("yzd-v/cls_KD #13: 'loss is always nan'", f"{GITHUB}yzd-v/cls_KD/issues/13"),
            ),
        ),
    )
}
