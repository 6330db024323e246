"""Exercises of lesson 00, Start here: warm-ups, and what a single run is worth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from course.specs import Case, CodeSpec, LessonSpec, Mistake, MultipleChoice, Option, QuestionSpec


def count_parameters(model: nn.Module) -> int:
    """How many weights and biases a model holds."""
    return sum(parameter.numel() for parameter in model.parameters())


def _models() -> list[Case]:
    with torch.random.fork_rng(devices=[]):  # the state of the lesson's random numbers does not change
        torch.default_generator.manual_seed(0)
        mixed = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 5))
        frozen = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 2, bias=False))
        frozen[0].requires_grad_(False)
        small = nn.Linear(3, 2)
    return [
        Case((small,), display="torch.nn.Linear(3, 2)"),
        Case((mixed,), display="nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 5))"),
        Case((frozen,), display="a model whose first layer is frozen"),
    ]


COUNT = CodeSpec(
    "count_parameters",
    "Count the parameters",
    "code",
    "easy",
    3,
    "Write count_parameters(model): how many weights and biases does a model hold? Count all of them, whether or not "
    "they are being trained: all have to be stored. One line is enough.",
    (
        "model.parameters() goes through the tensors; each tensor knows how many numbers it holds.",
        "tensor.numel() is that number. Add it up with sum(... for ... in ...).",
    ),
    "kdlib.measure.count_parameters does the same. Lesson 01 counts by hand where these numbers come from.",
    stub="def count_parameters(model):\n    ...  # one line",
    reference=count_parameters,
    cases=_models,
    mistakes=(
        Mistake(
            "tensors counted",
            lambda model: len(list(model.parameters())),
            "You counted the tensors. A weight of 2 x 3 is one tensor but six numbers.",
        ),
        Mistake(
            "rows counted",
            lambda model: sum(len(p) for p in model.parameters()),
            "len(tensor) is only its first dimension: a weight of 2 x 3 has length 2 but six numbers.",
        ),
        Mistake(
            "values added",
            lambda model: sum(float(p.detach().sum()) for p in model.parameters()),
            "You added up the values of the weights. The question is how many there are.",
        ),
        Mistake(
            "buffers counted",
            lambda model: sum(t.numel() for t in model.state_dict().values()),
            "state_dict() holds more than parameters: the running mean and variance of a batch norm are stored, but "
            "not learned.",
        ),
        Mistake(
            "frozen left out",
            lambda model: sum(p.numel() for p in model.parameters() if p.requires_grad),
            "You left out the frozen layers. They are not trained at the moment, but they are parameters and take "
            "room.",
        ),
        Mistake(
            "biases left out",
            lambda model: sum(p.numel() for p in model.parameters() if p.ndim > 1),
            "You counted only tensors of two and more dimensions: the biases and the batch norm are missing.",
        ),
        Mistake(
            "bytes",
            lambda model: sum(p.numel() * p.element_size() for p in model.parameters()),
            "These are bytes: 4 for each number in 32 bits. The question is how many numbers.",
        ),
    ),
)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of the images whose largest logit is that of the right class."""
    predicted = logits.argmax(dim=1)
    right = predicted == labels
    return right.float().mean().item()


def _answers() -> list[Case]:
    generator = torch.Generator().manual_seed(11)

    def case(images: int, classes: int) -> Case:
        labels = torch.randint(0, classes, (images,), generator=generator)
        logits = 2 * torch.randn(images, classes, generator=generator)
        logits[: images // 2, :] += 4 * torch.eye(classes)[labels[: images // 2]]  # some right, some wrong
        return Case((logits, labels))

    small = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), torch.tensor([0, 1, 1])
    return [Case(small), case(9, 4), case(5, 5), case(8, 3)]


ACCURACY = CodeSpec(
    "accuracy",
    "Measure the accuracy",
    "code",
    "easy",
    5,
    "Write accuracy(logits, labels): the share, from 0 to 1, of the images that a model gets right. logits, the raw "
    "scores of the model, has a row for each image and a column for each class; labels has the number of the right "
    "class for each image.",
    (
        "What a model answers is the class with the largest logit of its row.",
        "logits.argmax(dim=1) gives the answers. Compare them with the labels: True where right.",
        "The mean of True and False, as .float(), is the share of True.",
    ),
    "A softmax before it would change nothing: it keeps the order of the classes.",
    stub="def accuracy(logits, labels):\n    ...  # three lines",
    reference=accuracy,
    cases=_answers,
    mistakes=(
        Mistake(
            "number instead of share",
            lambda z, y: (z.argmax(dim=1) == y).sum().item(),
            "That is how many are right. Divide by the number of images to get a share.",
        ),
        Mistake(
            "percent",
            lambda z, y: 100 * (z.argmax(dim=1) == y).float().mean().item(),
            "That is in percent. The question asks for a share from 0 to 1.",
        ),
        Mistake(
            "over the batch",
            lambda z, y: (z.argmax(dim=0) == y).float().mean().item(),
            "dim=0 looks for the best image of each class. The classes lie in dimension 1: for each row, its best "
            "column.",
        ),
        Mistake(
            "no dimension",
            lambda z, y: (z.argmax() == y).float().mean().item(),
            "argmax() without a dimension gives one index for the whole tensor. Each image needs its own: dim=1.",
        ),
        Mistake(
            "smallest logit",
            lambda z, y: (z.argmin(dim=1) == y).float().mean().item(),
            "You took the smallest logit. The model's answer is the largest.",
        ),
        Mistake(
            "error rate",
            lambda z, y: (z.argmax(dim=1) != y).float().mean().item(),
            "That is the share of wrong answers. The accuracy is the rest.",
        ),
    ),
)


def _letter_of_gain(gain: object) -> str:
    number = float(gain)  # type: ignore[arg-type]
    if number != number:
        raise ValueError("not a number")
    return "a" if number > 0 else "b" if number < 0 else "c"


TWIN = QuestionSpec(
    "twin",
    "Will the distilled student beat its twin?",
    "prediction",
    "easy",
    2,
    "Two students have the same architecture, the same initial weights, the same images in the same order and the same "
    "number of epochs. One learns from the labels alone; the other also learns from the teacher's answers. Which one "
    "will have the higher test accuracy after this one run? Answer with .predict(...), run the training, then call "
    ".check(gain) with the distilled student's accuracy minus its twin's.",
    ("There is no trick. Say what you expect, and remember why.",),
    "Either way this is one run: a hint, not evidence. Another order of the images would give both students other "
    "numbers, and a small gain can change its sign.",
    is_prediction=True,
    answer_key=MultipleChoice(
        (Option("The distilled student", ""), Option("Its twin on labels alone", ""), Option("Neither, a tie", "")),
        from_measurement=_letter_of_gain,
    ),
)

ONE_SEED = QuestionSpec(
    "one_seed",
    "What would be evidence?",
    "question",
    "easy",
    3,
    "In one run the distilled student is half a percentage point ahead of its twin. What would turn this hint into "
    "evidence that the teacher helped?",
    (
        "What else differs between two runs of the same program, apart from the teacher?",
        "You want to know how much the gap moves by chance alone.",
    ),
    "Lesson 08 reads such a study: ten seeds, paired, with an interval and a verdict.",
    answer_key=MultipleChoice(
        (
            Option(
                "Repeating the pair with at least five other seeds, all gaps taken together",
                "Each pair shares a seed, so its gap is due to the teacher and to chance; several gaps show how large "
                "chance is, and an interval around their mean says whether 0 is still possible.",
                correct=True,
            ),
            Option(
                "Testing the same two students a second time on the same test images",
                "The same weights on the same images give the same accuracy: nothing new is learned.",
            ),
            Option(
                "A distilled student trained with five seeds, of which the best is compared with the twin",
                "The best of five is ahead of a single run by luck alone. Both sides need the same number of chances, "
                "and all runs must be counted.",
            ),
            Option(
                "Reporting the gap with more decimal places",
                "Digits do not make a run less accidental: 10,000 test images and another seed already move the "
                "accuracy by some tenths of a percentage point.",
            ),
        )
    ),
)

HISTORY = QuestionSpec(
    "history",
    "Read the history table",
    "figure",
    "easy",
    3,
    "run.history has one row for each epoch. Compare the table of the distilled student with that of its twin. Which "
    "column tells which of the two recognises new images better?",
    (
        "Two numbers can be compared if they measure the same thing on the same images.",
        "What does the distilled student's loss consist of? Look at its columns hard and soft.",
    ),
    "Choices are made on the validation images. The test images are looked at once, at the very end.",
    answer_key=MultipleChoice(
        (
            Option(
                "loss",
                "The two losses are different sums: the distilled student's has a soft part with the factor T^2 in it, "
                "the twin's has none. A larger loss need not be a worse student.",
            ),
            Option(
                "train_accuracy",
                "It is measured on the training images, augmented and while the weights still move: how well something "
                "was learned, not how it carries over to new images.",
            ),
            Option(
                "validation_accuracy",
                "The same question, right or wrong, on the same images that neither student was trained on.",
                correct=True,
            ),
            Option(
                "validation_loss",
                "It is measured on the right images, but it asks how much probability the right class got. A student "
                "that learns soft answers spreads its probability, and may recognise more all the same.",
            ),
        )
    ),
)

EXERCISES = LessonSpec("00", "Start here", (COUNT, ACCURACY, TWIN, ONE_SEED, HISTORY))
