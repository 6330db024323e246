"""Exercises of lesson 07, Relation distillation: FSP, CKA and information, what relations miss, and heat maps."""

from __future__ import annotations

import torch
from torch import Tensor

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Option, QuestionSpec


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
    "kdlib.losses.fsp_matrix is its tested form; it also pools the larger map to the smaller. The size, C_a x C_b, "
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


def cka_of_tables(a: Tensor, b: Tensor) -> Tensor:
    """Linear CKA from two tables of inner products, each B x B, whose means were not taken off."""
    centred = [x - x.mean(dim=0) - x.mean(dim=1, keepdim=True) + x.mean() for x in (a, b)]
    product = (centred[0] * centred[1]).sum()
    return product / (centred[0].norm() * centred[1].norm())


def _tables() -> list[Case]:
    generator = torch.Generator().manual_seed(72)

    def table(rows: Tensor) -> Tensor:
        return rows @ rows.T

    tiny = table(torch.tensor([[1.0], [2.0], [4.0]])), table(torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 3.0]]))
    sizes = (5, 3, 2), (4, 2, 6), (6, 4, 3), (3, 2, 2)
    random = [
        Case(tuple(table(torch.randn(n, width, generator=generator) + 0.7) for width in widths)) for n, *widths in sizes
    ]
    return [Case(tiny), *random]


def _centre(x: Tensor) -> Tensor:
    return x - x.mean(dim=0) - x.mean(dim=1, keepdim=True) + x.mean()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def _off_diagonal(x: Tensor) -> Tensor:
    return x - torch.diag(x.diagonal())


CKA = CodeSpec(
    "cka_of_tables",
    "CKA of two tables",
    "code",
    "medium",
    7,
    "Write cka_of_tables(a, b). a and b are the tables of two layers, B x B: the inner products of B pictures' "
    "features, whose mean was not taken off. Centre each table: take the mean of its column and the mean of its row "
    "off each entry, and add the mean of the whole table. Then give the cosine of the two tables, read as long "
    "vectors: one number.",
    (
        "x.mean(dim=0) has the means of the columns, x.mean(dim=1, keepdim=True) those of the rows, as a column.",
        "The cosine: the sum of the products, divided by both norms. x.norm() of a table is the root of all squares.",
    ),
    "Centring a table from both sides is the same as taking the mean off the features before the inner products. So "
    "CKA works for any table of likeness, kernels included. kdlib.losses.linear_cka starts from features.",
    stub="def cka_of_tables(a, b):\n    ...  # three or four lines",
    reference=cka_of_tables,
    cases=_tables,
    grad_arguments=("a", "b"),
    mistakes=(
        Mistake(
            "not centred",
            _cosine,
            "The tables are not centred. A large common mean then makes any two layers look alike.",
        ),
        Mistake(
            "keepdim forgotten",
            lambda a, b: _cosine(*(x - x.mean(dim=0) - x.mean(dim=1) + x.mean() for x in (a, b))),
            "The rows' means are not taken off the rows. Without keepdim=True (or [:, None]) x.mean(dim=1) goes off "
            "the columns once more; and x.mean() alone is one mean for all. Each row and each column has its own.",
        ),
        Mistake(
            "one side only",
            lambda a, b: _cosine(*(x - x.mean(dim=0) for x in (a, b))),
            "You centred one side only: the means of the rows and those of the columns both have to go.",
        ),
        Mistake(
            "whole mean not added",
            lambda a, b: _cosine(*(x - x.mean(dim=0) - x.mean(dim=1, keepdim=True) for x in (a, b))),
            "The mean of the whole table is taken off twice, with the rows and with the columns. Add it once.",
        ),
        Mistake(
            "whole mean taken off",
            lambda a, b: _cosine(*(x - x.mean(dim=0) - x.mean(dim=1, keepdim=True) - x.mean() for x in (a, b))),
            "The sign of the last mean is wrong: with the rows and the columns it was taken off twice, so add it.",
        ),
        Mistake(
            "one table only",
            lambda a, b: _cosine(_centre(a), b),
            "You centred the first table only. The norm of the second still contains its mean.",
        ),
        Mistake(
            "one table only, second",
            lambda a, b: _cosine(a, _centre(b)),
            "You centred the second table only. The norm of the first still contains its mean.",
        ),
        Mistake(
            "zeroed diagonal",
            lambda a, b: _cosine(*(_off_diagonal(_centre(x)) for x in (a, b))),
            "You set the diagonal to zero. Here it counts: it says how far each picture is from the mean. (Without it "
            "one comes to another estimate of CKA.)",
        ),
        Mistake(
            "zeroed diagonal before",
            lambda a, b: _cosine(*(_centre(_off_diagonal(x)) for x in (a, b))),
            "You set the diagonal to zero before centring. Here it counts: it says how large each picture's row is.",
        ),
        Mistake(
            "not divided by the norms",
            lambda a, b: (_centre(a) * _centre(b)).sum(),
            "This is the sum of the products. A cosine divides it by both norms.",
        ),
        Mistake(
            "mean of the products",
            lambda a, b: (_centre(a) * _centre(b)).mean(),
            "This is the mean of the products, a covariance. A cosine divides the sum by both norms.",
        ),
        Mistake(
            "mean divided by norms",
            lambda a, b: (_centre(a) * _centre(b)).mean() / (_centre(a).norm() * _centre(b).norm()),
            "You averaged the products, but the norms are roots of sums: add up the products.",
        ),
        Mistake(
            "root forgotten",
            lambda a, b: (_centre(a) * _centre(b)).sum() / (_centre(a).square().sum() * _centre(b).square().sum()),
            "You divided by the squared norms: a norm is the root of the sum of squares.",
        ),
        Mistake(
            "divided by one norm",
            lambda a, b: (_centre(a) * _centre(b)).sum() / _centre(a).square().sum(),
            "You divided by the first table's norm twice. Each of the two has one.",
        ),
        Mistake(
            "ratio upside down",
            lambda a, b: 1 / _cosine(_centre(a), _centre(b)),
            "The ratio is upside down: the sum of the products stands above, the norms below.",
        ),
        Mistake(
            "distance",
            lambda a, b: 1 - _cosine(_centre(a), _centre(b)),
            "You subtracted from 1: this is a distance. CKA is 1 for equal tables.",
        ),
        Mistake(
            "squared",
            lambda a, b: _cosine(_centre(a), _centre(b)).square(),
            "You squared the cosine. CKA is the cosine of the tables itself.",
        ),
        Mistake(
            "cosine of each row",
            lambda a, b: torch.nn.functional.cosine_similarity(_centre(a), _centre(b), dim=1),
            "You have a cosine for each picture. Read the whole table as one long vector: flatten() first.",
        ),
        Mistake(
            "mean of the rows' cosines",
            lambda a, b: torch.nn.functional.cosine_similarity(_centre(a), _centre(b), dim=1).mean(),
            "You averaged a cosine for each row. Read the whole table as one long vector: flatten() first.",
        ),
        Mistake(
            "product of matrices",
            lambda a, b: (_centre(a) @ _centre(b)).sum() / (_centre(a).norm() * _centre(b).norm()),
            "You multiplied the tables as matrices. Multiply entry by entry, with *.",
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
    "between samples do not mind; FSP matrices do. Adding a constant to all rows is another matter: CKA and "
    "RKD do not notice it, the similarity matrix does. And none of the three needs a projection where widths differ.",
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

BITS = QuestionSpec(
    "bits",
    "How many bits do two layers share?",
    "question",
    "medium",
    4,
    "Four pictures, and kernels of ones and zeros. Layer A finds pictures 1 and 2 alike, and 3 and 4. Layer B finds 1 "
    "and 3 alike, and 2 and 4. Each picture is alike to itself. How many bits does A share with itself, and how many "
    "with B?",
    (
        "Draw the two tables, 4 x 4. A one stays one when it is squared.",
        "E is the mean over all 16 pairs. In A's table 8 of them are ones. How many are ones in both tables?",
    ),
    "Who knows A's group knows half of what there is to know about the picture, and nothing about B's group. CKA of "
    "these two tables is 0 as well: CKA and information differ where likeness is not linear, as for x and x^2.",
    answer_key=MultipleChoice(
        (
            Option(
                "2 bits with itself, 0 with B",
                "2 bits, log2 of 4, is what a layer has that tells all four pictures apart. A tells two groups apart.",
            ),
            Option(
                "1 bit with itself, 0 with B",
                "E[kA^2] = 8/16, so with itself log2[(8/16) / (8/16)^2] = 1. Both tables have ones on the diagonal "
                "alone: log2[(4/16) / (8/16)^2] = 0.",
                correct=True,
            ),
            Option(
                "1 bit with itself, 1 with B",
                "Each of the two tells one bit, but not the same one: B puts the two pictures of each of A's groups "
                "into different groups.",
            ),
            Option(
                "-1 bit with itself, 0 with B",
                "The ratio is upside down: the mean of the product stands above, the product of the means below.",
            ),
            Option(
                "1.58 bits with itself, minus infinity with B",
                "You left the diagonal out: 4 ones in 12 pairs. A picture's pair with itself counts.",
            ),
        )
    ),
)

BLOCKS = QuestionSpec(
    "blocks",
    "Bright squares off the diagonal",
    "figure",
    "easy",
    4,
    "In the teacher's similarity matrix at layer3, its pictures sorted by class, the squares on the diagonal are "
    "bright. Off the diagonal some squares are brighter than most, such as Sneaker with Ankle boot, Coat with Pullover "
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
                "The layer finds these classes alike, before there are logits",
                "These are the classes that the soft labels of lesson 03 put next to each other.",
                correct=True,
            ),
        )
    ),
)

EXERCISES = LessonSpec("07", "How do relations teach?", (FSP, CKA, ROTATED, BITS, BLOCKS))
