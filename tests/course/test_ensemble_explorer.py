"""The explorer of several teachers: values, pictures that change, its error line, its text."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from test_explorers import named
from torch import Tensor, nn

from course import explorers, plots
from course.explorers.ensemble import WAYS, common_logits, entropy
from kdlib.data import InMemoryDataset
from kdlib.ensembles import confidence_weights, weighted_mean
from kdlib.teachers import Ensemble

pytestmark = pytest.mark.slow  # it draws

widgets = pytest.importorskip("ipywidgets")

VIEW = "application/vnd.jupyter.widget-view+json"
CLASSES = ("top", "shoe", "bag")
COUNT = 40
MOVES = {"picture": 3, "way": "vote", "temperature": 4.0, "weight_1": 3.0, "weight_3": 0.0}


class Given(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, _: Tensor) -> Tensor:
        return self.logits


@pytest.fixture(scope="module")
def dataset() -> InMemoryDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 1, 28, 28), generator=generator).byte()
    return InMemoryDataset(images, torch.arange(COUNT) % 3, torch.arange(COUNT), (0.5,), (0.5,))


@pytest.fixture(scope="module")
def teachers() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    right = 2 * torch.nn.functional.one_hot(torch.arange(COUNT) % 3, 3).float()
    noise = [torch.randn(COUNT, 3, generator=generator) for _ in range(3)]
    return {"first": right + noise[0], "second": right + noise[1], "bad": 2 * noise[2]}


@pytest.fixture
def explorer(teachers: dict[str, Tensor], dataset: InMemoryDataset) -> explorers.Ensemble:
    return explorers.Ensemble(teachers, dataset, CLASSES)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_notebook_gets_a_view_a_picture_and_one_line(explorer: explorers.Ensemble) -> None:
    bundle, metadata = explorer._repr_mimebundle_()
    assert set(bundle) == {VIEW, "image/png", "text/plain"}
    assert bundle["text/plain"].startswith(
        "Ensemble explorer: picture = 0, way = mean of probabilities, temperature = 1"
    )
    assert metadata == {"image/png": {"alt": explorer.alt}}
    assert len(bundle["image/png"]) < 100_000
    plots.check_labels(explorer.figure)


def test_controls_have_labels_and_work_with_a_keyboard(explorer: explorers.Ensemble) -> None:
    kinds = {name: type(control).__name__ for name, control in explorer.controls.items()}
    expected = {"picture": "IntSlider", "way": "Dropdown", "temperature": "FloatLogSlider"}
    assert kinds == expected | dict.fromkeys(("weight_1", "weight_2", "weight_3"), "FloatSlider")
    assert named(explorer)["weight_3"].description == "Weight of bad"


@pytest.mark.parametrize("control", MOVES)
def test_moving_a_control_changes_picture_and_text_and_back_again(explorer: explorers.Ensemble, control: str) -> None:
    before, text, start = explorer.png(), explorer._text.value, explorer.state[control]
    explorer.controls[control].value = MOVES[control]
    assert explorer.error == ""
    assert (pixels(explorer.png()) != pixels(before)).any()
    assert explorer._text.value != text
    explorer.controls[control].value = start
    assert explorer.png() == before
    assert explorer._text.value == text


def test_artists_are_changed_in_place(explorer: explorers.Ensemble) -> None:
    children = [len(axes.get_children()) for axes in explorer.figure.axes]
    explorer.set(**MOVES)
    assert [len(axes.get_children()) for axes in explorer.figure.axes] == children


def test_the_blitted_picture_is_that_of_the_whole_figure(explorer: explorers.Ensemble) -> None:
    explorer.set(**MOVES)
    quick = pixels(explorer.png()).astype(int)
    for artist in (*explorer._cached_artists, *explorer._live_artists):
        artist.set_animated(False)
    explorer._canvas.draw()
    whole = np.asarray(explorer._canvas.buffer_rgba())[..., :3].astype(int)
    assert (np.abs(quick - whole).max(axis=2) > 40).mean() < 0.01


@pytest.mark.parametrize(
    ("way", "mean"), [("mean of probabilities", "arithmetic"), ("mean of logits", "geometric"), ("vote", "vote")]
)
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.0)])
def test_the_common_answer_is_that_of_the_library(
    teachers: dict[str, Tensor], way: str, mean: str, weights: tuple[float, ...]
) -> None:
    logits, shares = torch.stack(list(teachers.values())), torch.tensor(weights) / sum(weights)
    found = common_logits(logits, torch.arange(COUNT) % 3, way, shares)
    expected = Ensemble([Given(one) for one in logits], list(weights), mean=mean)(logits)
    torch.testing.assert_close(found.softmax(dim=1), expected.softmax(dim=1))


@pytest.mark.parametrize(("way", "labels"), [(WAYS[3], None), (WAYS[4], torch.arange(COUNT) % 3)])
def test_confidence_is_that_of_the_library(teachers: dict[str, Tensor], way: str, labels: Tensor | None) -> None:
    logits = torch.stack(list(teachers.values()))
    found = common_logits(logits, torch.arange(COUNT) % 3, way, torch.full((3,), 1 / 3))
    torch.testing.assert_close(found, weighted_mean(logits, confidence_weights(logits, labels)))


def test_by_confidence_softened_answers_are_combined_as_a_student_is_taught(dataset: InMemoryDataset) -> None:
    """So no class has less than each of the teachers gives it, at any temperature."""
    sure = {name: 9.2 * torch.nn.functional.one_hot(torch.full((COUNT,), place), 3) for place, name in enumerate("ab")}
    explorer = explorers.Ensemble(sure, dataset, CLASSES, way=WAYS[3], temperature=4.0)
    shown = explorer.compute(*explorer.inputs())
    torch.testing.assert_close(shown.together, shown.each.mean(dim=0))
    assert "Softened first" in explorer.describe()
    explorer.set(way=WAYS[0])
    assert "Combined first" in explorer.describe()


def test_disagreement_is_nothing_for_one_and_the_logarithm_of_two_for_two_sure_ones(dataset: InMemoryDataset) -> None:
    sure = torch.full((COUNT, 3), -50.0)
    one, other = sure.clone(), sure.clone()
    one[:, 0], other[:, 1] = 50, 50
    explorer = explorers.Ensemble({"one": one, "other": other}, dataset, CLASSES)
    both = explorer.compute(*explorer.inputs())
    assert both.disagreement[0].item() == pytest.approx(math.log(2), abs=1e-4)
    assert both.uncertainty[0].item() == pytest.approx(0, abs=1e-4)
    explorer.set(weight_2=0.0)
    alone = explorer.compute(*explorer.inputs())
    assert alone.disagreement.max().item() == pytest.approx(0, abs=1e-4)
    assert alone.together.argmax() == 0


def test_teachers_that_know_nothing_lie_within_the_axes(dataset: InMemoryDataset) -> None:
    nothing = torch.zeros(COUNT, 10)
    classes = [f"class {number}" for number in range(10)]
    explorer = explorers.Ensemble({"one": nothing, "other": nothing}, dataset, classes)
    axes = explorer.figure.axes[2]
    left, right = axes.get_xlim()
    entropies = np.concatenate([line.get_xdata() for line in axes.lines])
    assert entropies.max() == pytest.approx(math.log(10))
    assert ((left < entropies) & (entropies < right)).all()


def test_entropy_is_that_of_a_fair_coin_and_of_a_sure_thing() -> None:
    torch.testing.assert_close(entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])), torch.tensor([math.log(2), 0.0]))


def test_the_most_disputed_picture_comes_first(explorer: explorers.Ensemble) -> None:
    disagreement = explorer.compute(*explorer.inputs()).disagreement
    assert disagreement[0] == disagreement.max()
    assert (disagreement.diff() <= 1e-6).all()


def test_the_text_says_who_says_what(explorer: explorers.Ensemble) -> None:
    explorer.set(picture=2, temperature=10.0)
    first, second, third = explorer.describe().splitlines()
    assert first.startswith("Number 3 of 40, ")
    assert "At T = 10.00 first: " in first
    assert first.endswith((", right.", ", wrong."))
    assert "nats" in second
    assert "together" in third
    assert "bad" in third


def test_nobody_to_ask_shows_in_the_status_line_and_leaves_again(explorer: explorers.Ensemble) -> None:
    for number in (1, 2):
        explorer.controls[f"weight_{number}"].value = 0.0
    before = explorer.png()
    explorer.controls["weight_3"].value = 0.0
    assert "All weights are 0" in explorer._status.value
    assert explorer.png() == before
    explorer.controls["weight_3"].value = 1.0
    assert explorer._status.value == ""


def test_nothing_runs_a_network_when_a_control_moves(
    explorer: explorers.Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a network ran in a callback")

    monkeypatch.setattr(nn.Module, "__call__", refuse)
    for way in WAYS:
        explorer.set(**{**MOVES, "way": way})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"one": torch.zeros(COUNT, 3)}, "two to 4 teachers; got 1"),
        ({"one": torch.zeros(COUNT, 3), "other": torch.zeros(COUNT, 4)}, r"other has logits of \(40, 4\)"),
    ],
)
def test_what_it_cannot_show_is_refused(given: dict[str, Tensor], message: str, dataset: InMemoryDataset) -> None:
    with pytest.raises(ValueError, match=message):
        explorers.Ensemble(given, dataset, CLASSES)


def test_a_teacher_that_is_sure_and_wrong_and_alone_makes_no_nan() -> None:
    labels = torch.arange(6) % 3
    sure = [20.0 * torch.nn.functional.one_hot((labels + shift) % 3, 3) for shift in (0, 1)]
    for way in WAYS:
        common = common_logits(torch.stack(sure), labels, way, torch.tensor([0.0, 1.0]))
        assert torch.equal(common.argmax(dim=1), (labels + 1) % 3), way
