"""The attention explorer: maps and numbers against the losses, pictures that change, errors that show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import test_explorers as common
import torch
from torch import Tensor, nn

from course import explorers
from course.explorers import attention
from kdlib import data, losses, models, projectors
from kdlib.hooks import FeatureExtractor

pytestmark = pytest.mark.slow  # it draws

Networks = dict[str, nn.Module]
MOVES = {
    "picture": 2,
    "show": "Shirt",
    "student_layer": "layer1",
    "teacher_layer": "layer2",
    "draw": attention.OVERLAY,
}
common.MOVES["Attention"] = MOVES


@pytest.fixture(scope="module")
def networks() -> Networks:
    students = [models.build("resnet8", num_classes=10, in_channels=1, seed=seed) for seed in (1, 2)]
    return {"teacher": models.load("resnet20-fashion"), "hard labels": students[0], "distilled": students[1]}


@pytest.fixture
def explorer(networks: Networks) -> explorers.Attention:
    return explorers.Attention(networks, per_class=4)


@pytest.fixture(scope="module")
def untouched(networks: Networks) -> explorers.Attention:
    """One for all tests that only read."""
    return explorers.Attention(networks, per_class=4)


# What all explorers promise.
test_bundle = common.test_a_notebook_gets_a_view_a_picture_and_one_line
test_one_image = common.test_there_is_one_image_and_nothing_that_flickers
test_keyboard = common.test_controls_have_labels_and_work_with_a_keyboard
test_alt = common.test_the_image_has_its_alt_text
test_titles = common.test_titles_stand_out_from_white
test_labelled = common.test_all_axes_are_labelled
test_in_place = common.test_artists_are_changed_in_place
test_whole = common.test_the_blitted_picture_is_that_of_the_whole_figure
test_describe = common.test_describe_is_the_text_below_the_picture
test_error_line = common.test_an_error_appears_in_the_status_line_and_leaves_again
test_one_picture = common.test_set_moves_several_controls_for_one_picture
test_set_names = common.test_set_names_the_possible_values
test_nothing_runs = common.test_nothing_trains_and_no_network_runs_when_a_control_moves


@pytest.mark.parametrize("control", MOVES)
def test_each_control_changes_the_picture_and_back_again(explorer: explorers.Attention, control: str) -> None:
    before, start = explorer.png(), explorer.controls[control].value
    explorer.controls[control].value = MOVES[control]
    assert explorer.error == ""
    assert explorer.png() != before
    explorer.controls[control].value = start
    assert explorer.png() == before


def test_the_same_state_gives_the_same_picture(explorer: explorers.Attention, networks: Networks) -> None:
    explorer.set(show="Shirt", student_layer="layer2", draw=attention.OVERLAY)
    fresh = explorers.Attention(
        networks, per_class=4, show="Shirt", student_layer="layer2", teacher_layer="layer3", draw=attention.OVERLAY
    )
    assert fresh.png() == explorer.png()
    assert fresh.describe() == explorer.describe()


def outputs(network: nn.Module, images: Tensor, layer: str) -> Tensor:
    with torch.no_grad(), FeatureExtractor(network.eval(), [layer]) as extractor:
        return extractor(images).features[layer]


def images(chosen: explorers.Attention) -> Tensor:
    split = data.load("fashion-mnist").validation
    return data.normalized_images(split.select(torch.tensor(chosen.selection.positions)))


@pytest.mark.parametrize(
    ("student_layer", "teacher_layer"), [("layer3", "layer3"), ("layer1", "layer2"), ("layer3", "layer1")]
)
def test_maps_and_losses_are_those_of_the_library(
    explorer: explorers.Attention, networks: Networks, student_layer: str, teacher_layer: str
) -> None:
    found = explorer.compute(explorer.attention_maps, 5, student_layer, teacher_layer)
    pixels = images(explorer)
    teacher, student = (
        outputs(networks["teacher"], pixels, teacher_layer),
        outputs(networks["distilled"], pixels, student_layer),
    )
    pair = projectors.PoolingProjector("", student, teacher)(student, teacher)  # as the method does first
    assert found.loss["distilled"] == pytest.approx(losses.attention(*(x[5:6] for x in pair)).item(), rel=1e-4)
    assert found.mean_loss["distilled"] == pytest.approx(losses.attention(*pair).item(), rel=1e-4)
    student_map, teacher_map = (losses.attention_map(x)[5] for x in pair)
    assert found.maps["distilled"].flatten() == pytest.approx(student_map.numpy(), abs=1e-5)
    assert found.maps["teacher"].flatten() == pytest.approx(teacher_map.numpy(), abs=1e-5)
    assert found.cosine["distilled"] == pytest.approx(float(student_map @ teacher_map), abs=1e-4)
    positions = found.maps["teacher"].size
    assert found.loss["distilled"] == pytest.approx(2 * (1 - found.cosine["distilled"]) / positions, rel=1e-3)


def test_the_teacher_beside_itself_is_alike(networks: Networks) -> None:
    twin = explorers.Attention({"teacher": networks["teacher"], "copy": networks["teacher"]}, per_class=1)
    assert "copy: attention loss 0, cosine 1.000" in twin.describe()
    assert twin.means()["copy"]["layer2"] == pytest.approx((0.0, 1.0), abs=1e-5)


def test_means_by_layer(explorer: explorers.Attention) -> None:
    found = explorer.means()
    assert list(found) == ["hard labels", "distilled"]
    assert list(found["distilled"]) == ["layer1", "layer2", "layer3"]
    one = explorer.compute(explorer.attention_maps, 0, "layer2", "layer2")
    assert found["distilled"]["layer2"] == (one.mean_loss["distilled"], one.mean_cosine["distilled"])


def test_networks_run_in_eval_mode_and_do_not_change(networks: Networks) -> None:
    student = models.build("resnet8", num_classes=10, in_channels=1, seed=3).train()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    random = torch.get_rng_state()
    explorers.Attention({"teacher": networks["teacher"], "student": student}, per_class=1)
    assert student.training
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
    assert not any(module._forward_hooks for module in student.modules())
    assert torch.equal(random, torch.get_rng_state())


def test_pictures_are_the_first_of_each_class_as_they_are(explorer: explorers.Attention) -> None:
    split = data.load("fashion-mnist").validation
    for number in (0, 17, 39):
        position = explorer.selection.positions[number]
        assert explorer.selection.images[number] * 255 == pytest.approx(split.images[position, 0].numpy(), abs=0.01)
        assert split.labels[position] == explorer.selection.labels[number] == number // 4
    explorer.set(show="Bag", picture=3)
    label = explorer.selection.classes.index("Bag")
    assert int((split.labels == label).nonzero()[3]) == explorer.selection.positions[4 * label + 3]
    assert (
        f"Validation picture {explorer.selection.positions[4 * label + 3]} (Bag; number 4 of 4)" in explorer.describe()
    )
    assert np.array_equal(explorer._images[0].get_array(), explorer.selection.images[4 * label + 3])


def test_the_slider_ends_with_the_pictures_of_the_class(explorer: explorers.Attention) -> None:
    explorer.set(picture=30)
    explorer.controls["show"].value = "Coat"
    assert explorer.controls["picture"].max == 3
    assert explorer.state["picture"] == 3
    assert explorer.error == ""


def test_colours_are_the_same_for_every_picture(explorer: explorers.Attention) -> None:
    explorer.set(picture=1)
    first = [image.get_clim() for image in explorer._maps.values()]
    explorer.set(picture=8)
    assert [image.get_clim() for image in explorer._maps.values()] == first
    assert len(set(first)) == 1


def test_over_the_picture_the_dark_parts_are_clear(explorer: explorers.Attention) -> None:
    explorer.set(draw=attention.OVERLAY)
    alpha = explorer._maps["teacher"].get_alpha()
    shown = explorer._maps["teacher"].get_array()
    assert alpha.shape == shown.shape
    assert alpha.max() <= 0.85
    assert (np.argsort(alpha.flatten())[0]) == np.argsort(np.asarray(shown).flatten())[0]
    explorer.set(draw=attention.MAPS)
    assert (explorer._maps["teacher"].get_alpha() == 1).all()


def test_networks_of_other_kinds_and_colour_pictures(blobs: data.DataModule) -> None:
    size = {"num_classes": 3, "in_channels": 1, "image_size": 8}
    networks = {"teacher": models.build("resnet8", **size), "student": models.build("article-student", **size)}
    explorer = explorers.Attention(networks, dataset=blobs, per_class=2)
    assert explorer.state["student_layer"] == "pool2"
    assert explorer.state["teacher_layer"] == "layer3"
    assert "compared at 2 x 2" in explorer.describe()
    colour = data.InMemoryDataset(
        blobs.validation.images.expand(-1, 3, -1, -1),
        blobs.validation.labels,
        blobs.validation.indices,
        (0.3,) * 3,
        (0.3,) * 3,
    )
    three = {name: models.build("resnet8", num_classes=3, in_channels=3) for name in ("teacher", "student")}
    none = [colour.select(torch.arange(0)) for _ in range(2)]
    dataset = data.DataModule("colour", blobs.classes, none[0], colour, none[1], data.NO_AUGMENTATION, 8)
    assert explorers.Attention(three, dataset=dataset, per_class=2).selection.images.shape == (6, 8, 8, 3)


def test_a_single_position_is_an_error_in_the_status_line(blobs: data.DataModule) -> None:
    size = {"num_classes": 3, "in_channels": 1, "image_size": 8}
    networks = {"teacher": models.build("article-teacher", **size), "student": models.build("resnet8", **size)}
    with pytest.raises(ValueError, match="At 1 x 1 there is only one position"):
        explorers.Attention(networks, dataset=blobs, per_class=2)
    explorer = explorers.Attention(networks, dataset=blobs, per_class=2, teacher_layer="pool2")
    before = explorer.png()
    explorer.controls["teacher_layer"].value = "pool3"
    assert "At 1 x 1 there is only one position" in explorer._status.value
    assert explorer.png() == before


def test_networks_that_cannot_be_compared_are_refused(networks: Networks) -> None:
    teacher, student = networks["teacher"], networks["distilled"]
    refused: list[tuple[Any, str]] = [
        ({"student": student}, 'called "teacher"'),
        ({"teacher": teacher}, "with 1 to 4 students"),
        ({}, "got none"),
        ({"teacher": teacher, **{str(i): student for i in range(5)}}, "with 1 to 4 students"),
        (
            {"teacher": teacher, "a": student, "b": models.build("article-student", num_classes=10, in_channels=1)},
            "a has layer1, layer2, layer3, but b has pool1, pool2",
        ),
        ({"teacher": teacher, "plain": nn.Linear(3, 3)}, "stages of a Linear are not known"),
        (
            {"teacher": teacher, "colour": models.build("resnet8", num_classes=10, in_channels=3)},
            "A CifarResNet cannot take pictures of 1 x 28 x 28",
        ),
        (
            {
                "teacher": teacher,
                "small stem": models.build("resnet18", num_classes=10, in_channels=1),
                "large stem": models.build("resnet18", num_classes=10, in_channels=1, stem="imagenet"),
            },
            "at layer1 small stem has 14 x 14, and large stem 7 x 7",
        ),
    ]
    for given, message in refused:
        with pytest.raises(ValueError, match=message):
            explorers.Attention(given, per_class=1)
    with pytest.raises(ValueError, match="per_class is at least 1"):
        explorers.Attention(networks, per_class=0)


def test_the_differences_are_those_of_the_maps_and_leave_the_teacher_alone(explorer: explorers.Attention) -> None:
    explorer.set(show="all pictures", picture=0, draw="maps")
    shown = {name: np.array(image.get_array()) for name, image in explorer._maps.items()}
    before = explorer.png()
    explorer.set(draw="differences")
    assert explorer.png() != before
    assert "difference" in explorer._scale.axes.get_ylabel()
    for name, image in explorer._maps.items():
        expected = shown[name] if name == "teacher" else abs(shown[name] - shown["teacher"])
        np.testing.assert_allclose(image.get_array(), expected, atol=1e-7)
        assert image.get_cmap().name == ("cividis" if name == "teacher" else "Greys")
    explorer.set(draw="maps")
    assert explorer.png() == before
    assert "difference" not in explorer._scale.axes.get_ylabel()
