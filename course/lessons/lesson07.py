"""Exercises of lesson 07, Relation distillation: FSP matrices, what relations do not notice, and heat maps."""

from __future__ import annotations

import torch
from torch import Tensor

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Option, QuestionSpec

BY_HAND = QuestionSpec(
    "by_hand",
    "An FSP matrix by hand",
    "question",
    "easy",
    4,
    "For one image, layer A has two channels on two positions: [1, 3] and [0, 2]. Layer B has the channels [2, 0] and "
    "[1, 1]. G[i, j] is the mean over the positions of channel i of A times channel j of B. What is G?",
    (
        "G has a row for each channel of A and a column for each channel of B: four numbers, each a mean of two "
        "products.",
        "G[0, 0] is (1 * 2 + 3 * 0) / 2.",
    ),
    "Each entry says how two channels, one of each layer, are active together: the flow from one layer to the next.",
    answer_key=MultipleChoice(
        (
            Option(
                "[[2, 4], [0, 2]]",
                "These are the sums over the two positions. The mean divides by 2, the number of positions.",
            ),
            Option(
                "[[1, 0], [2, 1]]",
                "Rows and columns are exchanged: the rows belong to A, the first layer.",
            ),
            Option(
                "[[1, 2], [0, 1]]",
                "(1*2 + 3*0)/2 = 1, (1*1 + 3*1)/2 = 2, (0*2 + 2*0)/2 = 0, (0*1 + 2*1)/2 = 1.",
                correct=True,
            ),
            Option(
                "[[2, 0], [0, 2]]",
                "You multiplied A and B place by place. Each channel of A meets each channel of B, and the positions "
                "are averaged away.",
            ),
        )
    ),
)


def fsp_matrix(a: Tensor, b: Tensor) -> Tensor:
    """How each channel of one layer goes together with each of another: B x C_a x C_b."""
    rows, columns = a.flatten(2), b.flatten(2)
    products = rows @ columns.transpose(1, 2)
    return products / rows.shape[2]


def _pairs() -> list[Case]:
    generator = torch.Generator().manual_seed(71)
    shapes = (2, 2, 3, 2, 3), (3, 4, 4, 3, 3), (1, 3, 2, 4, 2), (4, 4, 4, 4, 4)
    random = [
        Case((torch.randn(n, a, h, w, generator=generator), torch.randn(n, b, h, w, generator=generator)))
        for n, a, b, h, w in shapes
    ]
    small = torch.tensor([[[[1.0, 2.0]], [[0.0, 4.0]]]]), torch.tensor([[[[2.0, 1.0]], [[3.0, 0.0]], [[0.0, 1.0]]]])
    return [Case(small), *random]


def _products(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("bihw,bjhw->bij", a, b)


def _wrong_reshape(a: Tensor, b: Tensor) -> Tensor:
    rows, columns = (x.reshape(len(x), -1, x.shape[1]) for x in (a, b))
    return rows.transpose(1, 2) @ columns / rows.shape[1]


FSP = CodeSpec(
    "fsp_matrix",
    "FSP matrices in code",
    "code",
    "medium",
    6,
    "Write fsp_matrix(a, b): for each image G[i, j], the mean over all positions of channel i of the first layer times "
    "channel j of the second. a is B x C_a x H x W, b is B x C_b x H x W, with the same positions; the result is "
    "B x C_a x C_b.",
    (
        "flatten(2) puts the positions of each channel in a row: B x C x (H W).",
        "A product of matrices adds up over the positions: rows @ columns.transpose(1, 2).",
        "Divide by the number of positions, H times W.",
    ),
    "kdlib.losses.fsp_matrix is its tested twin; it also pools the larger map to the smaller. The size, C_a x C_b, "
    "depends on the widths: networks of other widths need a projection before their matrices can be compared.",
    stub="def fsp_matrix(a, b):\n    ...  # three lines",
    reference=fsp_matrix,
    cases=_pairs,
    grad_arguments=("a", "b"),
    mistakes=(
        Mistake(
            "sum instead of mean",
            _products,
            "You added up over the positions, so a larger map gives larger numbers. Divide by H times W.",
        ),
        Mistake(
            "divided by the channels",
            lambda a, b: _products(a, b) / a.shape[1],
            "You divided by the number of channels. The mean is over the positions, H times W.",
        ),
        Mistake(
            "divided by one side",
            lambda a, b: _products(a, b) / a.shape[2],
            "You divided by the height only. There are H times W positions.",
        ),
        Mistake(
            "divided by the other side",
            lambda a, b: _products(a, b) / a.shape[3],
            "You divided by the width only. There are H times W positions.",
        ),
        Mistake(
            "layers exchanged",
            lambda a, b: fsp_matrix(b, a),
            "The layers are exchanged: the first one belongs to the rows, the second to the columns.",
        ),
        Mistake(
            "mean over the images",
            lambda a, b: fsp_matrix(a, b).mean(dim=0),
            "You averaged over the images. Each image keeps a matrix of its own: B x C_a x C_b.",
        ),
        Mistake(
            "reshape instead of transpose",
            _wrong_reshape,
            "reshape(B, H * W, C) does not exchange dimensions: it cuts the same numbers into other rows, and mixes "
            "channels and positions. flatten(2) first, then transpose(1, 2).",
        ),
        Mistake(
            "averaged before multiplied",
            lambda a, b: a.mean(dim=(2, 3))[:, :, None] * b.mean(dim=(2, 3))[:, None, :],
            "You averaged each channel first and multiplied then. Whether two channels are active at the same place "
            "is lost so: multiply at each position, and average then.",
        ),
        Mistake(
            "scaled to norm 1",
            lambda a, b: (
                torch.nn.functional.normalize(a.flatten(2), dim=2)
                @ torch.nn.functional.normalize(b.flatten(2), dim=2).transpose(1, 2)
            ),
            "You scaled the channels to norm 1: these are cosines. FSP keeps the size of the activations.",
        ),
    ),
)

ROTATED = QuestionSpec(
    "rotated",
    "What does a relation not notice?",
    "prediction",
    "medium",
    3,
    "The features of a layer, one row an image, are multiplied by a rotation (each new channel is a mixture of the old "
    "ones, at every position the same) and by 3. The first layer of the FSP pair stays as it is. Which of these stay "
    "the same: the layer's linear CKA with other layers, the similarity matrix (rows of norm 1), RKD's relative "
    "distances and angles, the FSP matrix? Answer with .predict(...), compute them before and after, then call "
    ".check().",
    (
        "A rotation keeps inner products of two rows. A factor of 3 multiplies all of them by 9.",
        "In the FSP matrix each column belongs to one channel.",
    ),
    "A network can write down the same thing in many bases, and two trainings never choose the same one. Relations "
    "between samples do not mind; FSP matrices and hints do. Adding a constant to all rows is another matter: CKA and "
    "RKD do not notice it, the similarity matrix does.",
    is_prediction=True,
    answer_key=MultipleChoice(
        (
            Option(
                "None of them: every feature has changed",
                "The features have, but a rotation keeps their lengths and angles to each other, and all but FSP are "
                "made from nothing else.",
            ),
            Option(
                "All four: a rotation changes neither lengths nor angles, and a factor is divided out",
                "The FSP matrix relates single channels, and the channels are mixed now; nor is the factor of 3 "
                "divided out of it.",
            ),
            Option(
                "CKA, the similarity matrix and RKD stay; the FSP matrix changes",
                "The first three come from inner products or distances between images, scaled. The FSP matrix has a "
                "column for each channel, and those are mixed and three times as large.",
                correct=True,
            ),
            Option(
                "Only CKA stays: the factor of 3 changes similarities and distances",
                "It would, but the rows of the similarity matrix are scaled to norm 1, and RKD divides the "
                "distances by their mean; angles never depend on a factor.",
            ),
        )
    ),
)

WIDTHS = QuestionSpec(
    "widths",
    "64 channels against 256",
    "question",
    "easy",
    3,
    "The student's layers have 64 channels where the teacher's have 256. What can be compared as it is, without a "
    "learned projection?",
    (
        "Write down the size of each matrix. Where does the number of channels come in?",
        "Two matrices can be subtracted if they have the same size.",
    ),
    "No projection also means: nothing that could be forgotten, and nothing that is thrown away after training. But "
    "fewer things are compared, too: a relation can be right in a network whose features are not.",
    answer_key=MultipleChoice(
        (
            Option(
                "CKA matrices of L layers, and similarities or distances of B images",
                "Their sizes are L x L and B x B, whatever the widths.",
                correct=True,
            ),
            Option(
                "The maps themselves, by a hint",
                "64 maps against 256: there is no channel to compare most of them with. FitNets learn a projection.",
            ),
            Option(
                "FSP matrices: they only relate two layers of one network",
                "They do, but their size is C_a x C_b, 64 x 64 against 256 x 256.",
            ),
            Option(
                "None of these: different widths always need a projection",
                "Only what has a row or a column for each channel does.",
            ),
        )
    ),
)

BLOCKS = QuestionSpec(
    "blocks",
    "Bright squares off the diagonal",
    "figure",
    "medium",
    4,
    "In the teacher's similarity matrix at layer3, its pictures sorted by class, the squares on the diagonal are "
    "bright. Off the diagonal some squares are brighter than the rest: Sneaker with Ankle boot, Coat with Pullover "
    "and with Shirt. What do they tell?",
    (
        "A row of the matrix is one picture. Which other pictures does the layer answer in the same way?",
        "Lesson 03 found the same pairs of classes, in another place.",
    ),
    "A student that matches this matrix learns which pictures are alike, picture by picture, and needs neither the "
    "teacher's logits nor its widths.",
    answer_key=MultipleChoice(
        (
            Option(
                "The teacher takes most of these pictures for the other class",
                "It is right about most of them. The squares on the diagonal are brighter still, so the classes can be "
                "told apart.",
            ),
            Option(
                "There are more pictures of these classes, so they weigh more",
                "Each class has the same number of pictures in the figure: all squares have the same size.",
            ),
            Option(
                "The rows are scaled to norm 1, which makes some squares brighter",
                "Each row is divided by one number, so within a row the order of the pictures stays as it was.",
            ),
            Option(
                "The layer answers these classes in a similar way: it knows what is alike, before there are logits",
                "These are the classes that the soft labels of lesson 03 put next to each other.",
                correct=True,
            ),
        )
    ),
)

EXERCISES = LessonSpec("07", "How do relations teach?", (BY_HAND, FSP, ROTATED, WIDTHS, BLOCKS))
