"""Exercises of lesson 03, What does a teacher know?: reading soft labels, and what they carry."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Option, QuestionSpec


def class_similarity(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Row c: the teacher's mean answer to the images of class c."""
    classes = probabilities.shape[1]
    rows = [probabilities[labels == c].mean(dim=0) for c in range(classes)]
    return torch.stack(rows)


def _labelled_answers() -> list[Case]:
    generator = torch.Generator().manual_seed(31)

    def case(labels: list[int], classes: int) -> Case:
        truth = torch.tensor(labels)
        logits = torch.randn(len(labels), classes, generator=generator) + 1.5 * F.one_hot(truth, classes)
        return Case((torch.softmax(logits, dim=1), truth))

    small = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]]), torch.tensor([0, 0, 1])
    return [Case(small), case([2, 0, 1, 0, 2, 0, 1, 2, 2], 3), case([3, 1, 0, 2, 3, 3, 1], 4), case([1, 0, 2, 0, 0], 3)]


def _sums(p: Tensor, y: Tensor) -> Tensor:
    return F.one_hot(y, p.shape[1]).float().T @ p


SIMILARITY = CodeSpec(
    "class_similarity",
    "Which classes look alike to the teacher?",
    "code",
    "medium",
    6,
    "Write class_similarity(probabilities, labels): a C x C tensor whose row c is the mean of the teacher's answers to "
    "the images of class c. probabilities has a row for each image and a column for each of the C classes; labels has "
    "the true class of each image; each class occurs at least once.",
    (
        "For one class: choose the rows of its images, and take their mean, class by class.",
        "probabilities[labels == c] are the rows of class c; a mean over dim=0 makes one row of them.",
        "Do this for c in range(classes), and torch.stack the rows.",
    ),
    "Each row sums to 1. What lies beside the diagonal is the dark knowledge, averaged: a hard label has zeros there.",
    stub="def class_similarity(probabilities, labels):\n    ...  # three or four lines",
    reference=class_similarity,
    cases=_labelled_answers,
    mistakes=(
        Mistake(
            "sum instead of mean",
            _sums,
            "You added up the answers, so a class with more images gets larger numbers. Take the mean.",
        ),
        Mistake(
            "divided by all images",
            lambda p, y: _sums(p, y) / len(y),
            "You divided by the number of all images. Each row is a mean over the images of its own class.",
        ),
        Mistake(
            "columns instead of rows",
            lambda p, y: class_similarity(p, y).T,
            "Rows and columns are exchanged: row c should be the answer to images of class c, and sum to 1.",
        ),
        Mistake(
            "sorted by the teacher's answer",
            lambda p, y: class_similarity(p, p.argmax(dim=1)),
            "You sorted the images by what the teacher answers. Sort them by their true class, labels.",
        ),
        Mistake(
            "hard answers",
            lambda p, y: class_similarity(F.one_hot(p.argmax(dim=1), p.shape[1]).float(), y),
            "You kept only the teacher's first choice. That is the confusion matrix: the dark knowledge is lost in it.",
        ),
        Mistake(
            "own columns",
            lambda p, y: _sums(p, y) / _sums(p, y).sum(dim=0, keepdim=True),
            "Your columns sum to 1. The rows should: they are means of probabilities.",
        ),
        Mistake(
            "rows of one column",
            lambda p, y: torch.stack([p[y == c].mean(dim=0, keepdim=True) for c in range(p.shape[1])]),
            "keepdim=True leaves a dimension of size 1 in each row, and the stack has three dimensions: leave it out.",
        ),
        Mistake(
            "means of columns, not of rows",
            lambda p, y: torch.stack([p[:, c].mean().expand(p.shape[1]) for c in range(p.shape[1])]),
            "You averaged a column: how often class c is named. Choose rows first, those of the images of class c: "
            "probabilities[labels == c].",
        ),
        Mistake(
            "rows by number",
            lambda p, y: torch.stack([p[y[c]] for c in range(p.shape[1])]),
            "You took single rows by number. labels == c says which rows belong to class c: take all of these.",
        ),
        Mistake(
            "one-hot labels of whole numbers",
            lambda p, y: F.one_hot(y, p.shape[1]).T @ p,
            "one_hot gives whole numbers, and a product of matrices wants one type: .float() is missing after it.",
        ),
        Mistake(
            "class 0 only",
            lambda p, y: torch.stack([p[y == 0].mean(dim=0) for _ in range(p.shape[1])]),
            "All your rows are the same: the comparison with the labels has to use c, the class of this row.",
        ),
        Mistake(
            "mean over the classes",
            lambda p, y: torch.stack([p[y == c].mean() for c in range(p.shape[1])]),
            "mean() without a dimension makes one number of all rows. Use dim=0, over the images, and keep the "
            "classes.",
        ),
    ),
)


def nearest_wrong(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The most probable class of each image apart from the true one."""
    others = probabilities.clone()
    others[torch.arange(len(labels)), labels] = -1.0
    return others.argmax(dim=1)


def _whole_columns(p: Tensor, y: Tensor) -> Tensor:
    others = p.clone()
    others[:, y] = -1.0
    return others.argmax(dim=1)


def _whole_rows(p: Tensor, y: Tensor) -> Tensor:
    others = p.clone()
    others[y] = -1.0
    return others.argmax(dim=1)


def _some_wrong() -> list[Case]:
    generator = torch.Generator().manual_seed(32)

    def case(images: int, classes: int) -> Case:
        truth = torch.randint(0, classes, (images,), generator=generator)
        logits = torch.randn(images, classes, generator=generator) + 1.0 * F.one_hot(truth, classes)
        return Case((torch.softmax(logits, dim=1), truth))

    small = torch.tensor([[0.7, 0.1, 0.2], [0.5, 0.3, 0.2]]), torch.tensor([0, 1])
    sure = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    advice = "Then all others are 0, too: give the true class a value below that."
    return [Case(small), case(10, 4), case(6, 6), case(1, 5), Case(sure, "a teacher that is completely sure", advice)]


NEAREST = CodeSpec(
    "nearest_wrong",
    "The nearest wrong answer",
    "code",
    "medium",
    6,
    "Write nearest_wrong(probabilities, labels): for each image the class, other than the true one, to which the "
    "teacher gives the most. Mind the images that the teacher gets wrong. The result is a tensor with one class number "
    "an image.",
    (
        "Take the true class out of the competition, and look for the largest of the rest.",
        "others = probabilities.clone(); then give the true class of each row a value below every probability.",
        "others[torch.arange(len(labels)), labels] names one place in each row.",
    ),
    "Where the teacher is wrong, this is its answer; where it is right, this is its second choice.",
    stub="def nearest_wrong(probabilities, labels):\n    ...  # three lines",
    reference=nearest_wrong,
    cases=_some_wrong,
    mistakes=(
        Mistake(
            "second place",
            lambda p, y: p.topk(2, dim=1).indices[:, 1],
            "You took the second place. Where the teacher is wrong, the true class may be in second place, and the "
            "nearest wrong answer in the first.",
        ),
        Mistake(
            "first place",
            lambda p, y: p.argmax(dim=1),
            "You took the teacher's first choice, which is mostly the true class. That one does not count here.",
        ),
        Mistake(
            "least probable",
            lambda p, y: p.argmin(dim=1),
            "You took the least probable class: the farthest wrong answer, not the nearest.",
        ),
        Mistake(
            "probability instead of class",
            lambda p, y: p.scatter(1, y[:, None], -1.0).amax(dim=1),
            "You give the probability. The question asks which class it is: argmax instead of max.",
        ),
        Mistake(
            "whole columns",
            _whole_columns,
            "others[:, labels] names whole columns, for all images at once. One place in each row is "
            "others[torch.arange(len(labels)), labels].",
        ),
        Mistake(
            "whole rows",
            _whole_rows,
            "others[labels] names whole rows. One place in each row is others[torch.arange(len(labels)), labels].",
        ),
        Mistake(
            "keepdim",
            lambda p, y: p.scatter(1, y[:, None], -1.0).argmax(dim=1, keepdim=True),
            "One class number an image is a tensor with one dimension: leave out keepdim=True, or [:, None].",
        ),
        Mistake(
            "one for all images",
            lambda p, y: p.scatter(1, y[:, None], -1.0).argmax(),
            "argmax() without a dimension gives one place for all images together. Each image has its own: dim=1.",
        ),
        Mistake(
            "no competition but the true class",
            lambda p, y: (p * F.one_hot(y, p.shape[1])).argmax(dim=1),
            "You kept the true class and set the others to 0. It is the other way round: the true class has to go.",
        ),
        Mistake(
            "over the batch",
            lambda p, y: p.scatter(1, y[:, None], -1.0).argmax(dim=0),
            "dim=0 looks for an image for each class. Look for a class for each image: dim=1.",
        ),
    ),
)


def entropy(probabilities: Tensor) -> Tensor:
    """How undecided each row is, in nats: 0 when one class has everything."""
    safe = torch.where(probabilities > 0, probabilities, 1.0)
    return -(probabilities * safe.log()).sum(dim=1)


def _decided() -> list[Case]:
    generator = torch.Generator().manual_seed(33)
    rows = [(2.0, (6, 4)), (1.0, (5, 10)), (4.0, (1, 7))]
    soft = [torch.softmax(size * torch.randn(*shape, generator=generator), dim=1) for size, shape in rows]
    sure = torch.tensor([[0.0, 1.0, 0.0], [0.25, 0.75, 0.0]])
    advice = "There log(0) is -inf, and 0 * -inf is NaN. What should a class that never happens add?"
    first = Case((torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.09, 0.01]]),))
    return [first, *(Case((p,)) for p in soft), Case((sure,), "probabilities of exactly 0", advice)]


def _plain_entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(dim=1)


ENTROPY = CodeSpec(
    "entropy",
    "How undecided is the teacher?",
    "code",
    "medium",
    5,
    "Entropy measures doubt: it is 0 if one class has everything, and log C if all C classes are equal. Write "
    "entropy(probabilities): -sum_c p_c log p_c for each row, with the natural logarithm (its unit is then the nat). "
    "A class with probability 0 adds nothing. The result is a tensor with one number an image.",
    (
        "Multiply, add up over the classes, and turn the sign. Then try a row with a 0 in it.",
        "torch.where(condition, a, b) can put a harmless value where the probability is 0; log(1) is 0.",
    ),
    "A one-hot label has entropy 0: it says one thing only. With C equal probabilities it is log C, the most there is. "
    "exp(entropy) is the effective number of classes, used in lesson 04.",
    stub="def entropy(probabilities):\n    ...  # two or three lines",
    reference=entropy,
    cases=_decided,
    mistakes=(
        Mistake(
            "log of 0",
            _plain_entropy,
            "The formula is right, but where a probability is 0 it gives NaN: log(0) is -inf, and 0 * -inf is NaN. A "
            "class that never happens should add 0.",
        ),
        Mistake("sign", lambda p: -entropy(p), "The sign is missing: logarithms of probabilities are negative."),
        Mistake(
            "bits",
            lambda p: entropy(p) / torch.tensor(2.0).log(),
            "You used log2: these are bits. The question asks for nats, with the natural logarithm.",
        ),
        Mistake(
            "mean over the classes",
            lambda p: entropy(p) / p.shape[1],
            "You took the mean over the classes. The entropy is their sum.",
        ),
        Mistake(
            "over the batch",
            lambda p: -torch.xlogy(p, p).sum(dim=0),
            "You added up over the images. The classes lie in dimension 1.",
        ),
        Mistake(
            "no dimension",
            lambda p: -torch.xlogy(p, p).sum(),
            "sum() without a dimension makes one number of all images. Each image has its own entropy: dim=1.",
        ),
        Mistake(
            "keepdim",
            lambda p: -torch.xlogy(p, p).sum(dim=1, keepdim=True),
            "One number an image is a tensor with one dimension: leave out keepdim=True.",
        ),
        Mistake(
            "not added up",
            lambda p: -torch.xlogy(p, p),
            "These are the terms of the single classes. Add them up: sum(dim=1).",
        ),
        Mistake(
            "softmax first",
            lambda p: entropy(p.softmax(dim=1)),
            "You took a softmax of probabilities: they are that already, and a second one makes them nearly equal.",
        ),
        Mistake(
            "effective number of classes",
            lambda p: entropy(p).exp(),
            "That is exp(entropy), the effective number of classes. The question asks for the entropy itself.",
        ),
        Mistake(
            "mean over the images",
            lambda p: entropy(p).mean(),
            "You took the mean over the images as well. Each image has its own entropy.",
        ),
        Mistake(
            "variance-like",
            lambda p: 1 - (p * p).sum(dim=1),
            "This is 1 - sum p^2, another measure of doubt (Gini's). The entropy weighs log p with p.",
        ),
        Mistake(
            "a small number inside the logarithm",
            lambda p: -(p * (p + 1e-3).log()).sum(dim=1),
            "A number that large inside the logarithm changes the result. Put 1 in place of the zeros: log(1) is 0.",
        ),
        Mistake(
            "log p without p",
            lambda p: -p.log().sum(dim=1),
            "You added up the logarithms alone. Each has to be weighted with its probability.",
        ),
    ),
)

SHIRT = QuestionSpec(
    "shirt",
    "The soft label of a shirt",
    "prediction",
    "easy",
    2,
    "Take the teacher's answers to all images of shirts it was not trained on, at T = 4, and average them. Part of the "
    "probability is not on Shirt. Where is most of it? Answer with .predict(...), look, then call .check().",
    ("Which of the ten things would you yourself mistake for a shirt, on a grey picture of 28 x 28 pixels?",),
    "This is what a hard label cannot say: that a shirt is more like a coat than like a sandal. Label smoothing, "
    "which gives every other class the same, does not say it either.",
    is_prediction=True,
    answer_key=MultipleChoice(
        (
            Option(
                "Evenly on the nine other classes, as label smoothing would do it",
                "Then it would say nothing about which classes are alike.",
            ),
            Option(
                "On T-shirt/top, Pullover, Coat and Dress, none of them far ahead",
                "These four look like shirts, and the teacher has learned it without a label for it.",
                correct=True,
            ),
            Option(
                "Nearly all on a single class, T-shirt/top, the most similar one",
                "It is among the first, but Coat is ahead and Pullover close.",
            ),
            Option(
                "On Sandal, Sneaker, Ankle boot, Bag and Trouser, the least similar",
                "They look quite different, and get little.",
            ),
        )
    ),
)

MISSING = QuestionSpec(
    "missing_class",
    "How can it know what it never saw?",
    "figure",
    "medium",
    4,
    "Look at what the controls of the missing class recognise, without the constant and with it, and at the table of "
    "five seeds. Which sentence agrees with all of it?",
    (
        "With the shuffled logit each class keeps its likeness to T-shirts, and single pictures lose theirs. What is "
        "lost without the constant, and what with it?",
        "Class means say nothing about single pictures, and label smoothing nothing about classes either.",
    ),
    "Hinton, Vinyals and Dean (2015, arXiv:1503.02531) left out every 3 of MNIST: the distilled net made 206 errors on "
    "the test set, and 109 after the bias of the 3, which had been learned too low, was raised. They ran none of these "
    "controls, so their numbers do not say which part of the soft labels did it.",
    answer_key=MultipleChoice(
        (
            Option(
                "The constant matters, not the labels: with the right one on that logit, each student finds the class",
                "With hard labels the best constant is 0, and with label smoothing the constant finds hardly any.",
            ),
            Option(
                "It is in the logit of that class, picture by picture; once that is shuffled, no student finds it",
                "Without the constant it is. With the constant, the student of the shuffled logit still finds many.",
            ),
            Option(
                "The teacher's view of single pictures makes it say so; likeness of classes does much of the rest",
                "Only the teacher's own answers make it say so unaided; with a constant, means of classes find many.",
                correct=True,
            ),
            Option(
                "It learned the class from the few pictures that carry another label but look like it to the teacher",
                "Without these pictures it says the name less often, but with the constant it still finds most.",
            ),
        )
    ),
)

EXERCISES = LessonSpec("03", "What does a teacher know?", (SIMILARITY, NEAREST, ENTROPY, SHIRT, MISSING))
