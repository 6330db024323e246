"""The relations explorer: matrices and numbers against the losses, snapshots, pictures that change, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import test_explorers as common
import torch
from torch import Tensor, nn

from course import explorers
from course.explorers import relation_matrices, relations
from kdlib import data, losses, models
from kdlib.hooks import FeatureExtractor

pytestmark = pytest.mark.slow  # it draws

MOVES = {
    "relation": relation_matrices.SIMILARITY,
    "layers": "layer2",
    "student": "hard labels",
    "snapshot": "epoch 0",
}
common.MOVES["Relations"] = MOVES
STAGES = {"layer1": "layer1", "layer2": "layer2", "layer3": "layer3"}


def build(name: str = "resnet8", seed: int = 1) -> nn.Module:
    return models.build(name, num_classes=10, in_channels=1, seed=seed)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return models.load("resnet20-fashion")


@pytest.fixture(scope="module")
def students() -> dict[str, dict[str, nn.Module]]:
    return {
        "hard labels": {"epoch 0": build(seed=1), "epoch 1": build(seed=2)},
        "distilled": {"epoch 0": build(seed=1), "epoch 1": build(seed=3)},
    }


@pytest.fixture
def explorer(teacher: nn.Module, students: dict) -> explorers.Relations:
    return explorers.Relations(teacher, students, per_class=2)


@pytest.fixture(scope="module")
def untouched(teacher: nn.Module, students: dict) -> explorers.Relations:
    """One for all tests that only read."""
    return explorers.Relations(teacher, students, per_class=2)


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


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("relation", relation_matrices.SIMILARITY),
        ("relation", relation_matrices.DISTANCE),
        ("relation", relation_matrices.CORRELATION),
        ("relation", relation_matrices.INFORMATION),
        ("layers", "layer2 to layer3"),
        ("student", "hard labels"),
        ("snapshot", "epoch 0"),
    ],
)
def test_each_control_changes_the_picture_and_back_again(
    explorer: explorers.Relations, control: str, value: str
) -> None:
    before, start, calls = explorer.png(), explorer.controls[control].value, []
    working = explorer.update
    explorer.update = lambda found: (calls.append(1), working(found))
    explorer.controls[control].value = value
    assert explorer.error == ""
    assert len(calls) == 1  # also when the layers to choose from change with the relation
    assert explorer.png() != before
    explorer.controls[control].value = start
    assert explorer.png() == before


def test_the_same_state_gives_the_same_picture(
    explorer: explorers.Relations, teacher: nn.Module, students: dict
) -> None:
    fresh = explorers.Relations(teacher, students, per_class=2, **MOVES)
    for control, value in MOVES.items():
        explorer.controls[control].value = value
    assert fresh.png() == explorer.png()
    assert fresh.describe() == explorer.describe()


@pytest.mark.parametrize("goes_back", [False, True])
def test_after_an_interrupted_cell_the_picture_fits_the_controls(
    explorer: explorers.Relations, teacher: nn.Module, students: dict, goes_back: bool
) -> None:
    before = {name: explorer.state[name] for name in ("relation", "layers")}
    common.interrupt(explorer, relation=relation_matrices.CORRELATION)
    explorer.set(**(before if goes_back else {}), snapshot="epoch 0")
    assert explorer.png() == explorers.Relations(teacher, students, per_class=2, **explorer.state).png()


def test_layers_to_choose_from_follow_the_relation(explorer: explorers.Relations) -> None:
    assert list(explorer.controls["layers"].options) == ["layer1 to layer2", "layer2 to layer3"]
    explorer.set(relation=relation_matrices.SIMILARITY, layers="layer3")
    assert list(explorer.controls["layers"].options) == ["layer1", "layer2", "layer3"]
    explorer.set(relation=relation_matrices.FSP)
    assert explorer.state["layers"] == "layer1 to layer2"
    explorer.set(relation=relation_matrices.CORRELATION)
    assert list(explorer.controls["layers"].options) == ["all layers"]
    with pytest.raises(ValueError, match="layers cannot be 'layer7': choose one of all layers"):
        explorer.set(layers="layer7")
    explorer.set(relation=relation_matrices.FSP, layers="layer2 to layer3")  # which the relation before did not have
    assert explorer.state["layers"] == "layer2 to layer3"


def outputs(network: nn.Module, chosen: explorers.Relations, layers: list[str]) -> list[Tensor]:
    split = data.load("fashion-mnist").validation.select(torch.tensor(chosen.selection.positions))
    with torch.no_grad(), FeatureExtractor(network.eval(), layers) as extractor:
        answer = extractor(data.normalized_images(split))
    return [answer.features[layer] for layer in layers]


def test_losses_and_matrices_are_those_of_the_library(
    explorer: explorers.Relations, teacher: nn.Module, students: dict
) -> None:
    student, target = (outputs(one, explorer, list(STAGES)) for one in (students["distilled"]["epoch 1"], teacher))
    found = explorer.results.losses["distilled", "epoch 1"]
    expected = {
        (relation_matrices.FSP, "layer2 to layer3"): losses.fsp(student[1:], target[1:]),
        (relation_matrices.SIMILARITY, "layer2"): losses.similarity(student[1], target[1]),
        (relation_matrices.DISTANCE, "layer3"): losses.rkd_distance(student[2], target[2]),
        (relation_matrices.CORRELATION, "all layers"): losses.layer_correlation(student, target),
        (relation_matrices.INFORMATION, "all layers"): losses.layer_information(student, target),
    }
    for what, value in expected.items():
        assert found[what] == pytest.approx(value.item(), rel=1e-3), what
    matrices = explorer.results.matrices["distilled", "epoch 1"]
    mean = losses.fsp_matrix(student[0], student[1]).mean(dim=0)
    assert matrices[relation_matrices.FSP, "layer1 to layer2"] == pytest.approx(mean.numpy(), rel=1e-3, abs=1e-5)
    cka = losses.linear_cka(student[0], student[2]).item()
    assert matrices[relation_matrices.CORRELATION, "all layers"][0, 2] == pytest.approx(cka, rel=1e-3)


@pytest.mark.parametrize("name", [relation_matrices.SIMILARITY, relation_matrices.DISTANCE])
def test_the_matrices_of_pictures_are_what_their_losses_compare(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(6, 4, generator=generator), torch.rand(6, 9, generator=generator)
    kind = relation_matrices.RELATIONS[name]
    compare = {
        relation_matrices.SIMILARITY: nn.functional.mse_loss,
        relation_matrices.DISTANCE: nn.functional.smooth_l1_loss,
    }[name]
    assert kind.loss([a], [b]).item() == pytest.approx(compare(kind.matrix([a]), kind.matrix([b])).item(), rel=1e-4)


def test_similarity_and_distance_by_hand() -> None:
    rows = [torch.tensor([[3.0, 4.0], [0.0, 5.0]])]
    assert relation_matrices.similarity_matrix(rows) == pytest.approx(
        np.array([[25, 20], [20, 25]]) / np.hypot(25, 20), rel=1e-6
    )
    three = [torch.tensor([[0.0], [1.0], [3.0]])]
    assert relation_matrices.distance_matrix(three) == pytest.approx(np.array([[0, 1, 3], [1, 0, 2], [3, 2, 0]]) / 2)


def test_the_picture_shows_the_matrices_and_the_losses(explorer: explorers.Relations) -> None:
    explorer.set(relation=relation_matrices.CORRELATION, snapshot="epoch 0")
    what = (relation_matrices.CORRELATION, "all layers")
    shown = [np.asarray(image.get_array()) for image in explorer._maps]
    assert shown[0] == pytest.approx(explorer.results.matrices["teacher", ""][what])
    assert shown[1] == pytest.approx(explorer.results.matrices["distilled", "epoch 0"][what])
    assert [cell.get_text() for cell in explorer._numbers[1]] == [f"{value:.2f}" for value in shown[1].flat]
    line = [explorer.results.losses["hard labels", snapshot][what] for snapshot in explorer.snapshots]
    assert list(explorer._trends["hard labels"].get_ydata()) == line
    assert f"losses.layer_correlation between the two: {line[0]:.3g}" in explorer.describe()
    assert [image.get_clim() for image in explorer._maps] == [(0, 1), (0, 1)]


def test_pictures_are_sorted_by_class_and_the_classes_named(explorer: explorers.Relations) -> None:
    explorer.set(relation=relation_matrices.SIMILARITY)
    assert list(explorer.selection.labels) == sorted(explorer.selection.labels)
    names = [tick.get_text() for tick in explorer._axes[0].get_yticklabels()]
    assert names == list(explorer.selection.classes)
    assert list(explorer._axes[0].get_yticks()) == [0.5 + 2 * number for number in range(10)]


def test_other_widths_are_drawn_each_in_its_own_size(teacher: nn.Module) -> None:
    student = models.build("article-student", num_classes=10, in_channels=1, seed=0)
    explorer = explorers.Relations(teacher, {"new": student}, per_class=1)
    assert explorer.layer_pairs == {"pool1": "layer2", "pool2": "layer3"}
    found = explorer.compute(*explorer.inputs())
    assert (found.teacher.shape, found.student.shape) == ((32, 64), (16, 32))
    assert found.losses == {"student": [None]}
    assert "no loss without a projection" in explorer.describe()
    assert explorer._no_loss.get_visible()
    assert [axes.get_ylabel() for axes in explorer._axes[:2]] == ["channel of layer2", "channel of pool1"]
    explorer.set(relation=relation_matrices.CORRELATION)  # needs no projection
    assert not explorer._no_loss.get_visible()
    assert explorer.compute(*explorer.inputs()).losses["student"][0] > 0


def test_students_of_other_widths_do_not_hide_the_one_of_the_same(teacher: nn.Module) -> None:
    narrow = models.build("resnet8w8", num_classes=10, in_channels=1, seed=0)
    students = {"narrow": {"new": narrow}, "wide": {"new": build()}}
    explorer = explorers.Relations(teacher, students, per_class=1)
    for student in students:
        explorer.set(student=student)
        assert ("no loss" in explorer.describe()) == (student == "narrow")


def test_wide_matrices_are_drawn_in_blocks() -> None:
    matrix = np.arange(128 * 64, dtype=np.float32).reshape(128, 64)
    assert relations._downsample(matrix) == pytest.approx(matrix.reshape(64, 2, 64).mean(axis=1))
    assert (relations._downsample(matrix[:3]) == matrix[:3]).all()


def test_a_single_layer_has_no_relations_between_layers(teacher: nn.Module) -> None:
    explorer = explorers.Relations(teacher, {"new": build()}, layer_pairs={"layer3": "layer3"}, per_class=1)
    assert list(explorer.controls["relation"].options) == [relation_matrices.SIMILARITY, relation_matrices.DISTANCE]


def test_the_teacher_beside_itself_has_no_loss(teacher: nn.Module) -> None:
    explorer = explorers.Relations(teacher, {"copy": teacher}, per_class=1)
    assert all(value == 0 for value in explorer.results.losses["student", "copy"].values())


def test_compute_is_cached_and_colours_do_not_depend_on_the_snapshot(explorer: explorers.Relations) -> None:
    first = explorer.compute(*explorer.inputs())
    assert explorer.compute(*explorer.inputs()) is first
    explorer.set(snapshot="epoch 0")
    second = explorer.compute(*explorer.inputs())
    assert (first.low, first.high) == (second.low, second.high)


# Snapshots.


def test_snapshots_keep_what_was_and_leave_the_student_alone() -> None:
    student = build().train()
    snapshots = explorers.Snapshots(student)
    start = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with torch.no_grad():
        student.fc.bias += 1
    snapshots.add(1)
    with torch.no_grad():
        student.fc.bias += 1
    snapshots(2, student)  # as a training loop would call it
    assert list(snapshots) == ["epoch 0", "epoch 1", "epoch 2"]
    for number, kept in enumerate(snapshots.values()):
        torch.testing.assert_close(kept.fc.bias.detach(), start["fc.bias"] + number)
        assert not kept.training
    assert student.training


def test_snapshots_taken_inside_a_training_have_no_hooks(teacher: nn.Module) -> None:
    student = build()
    snapshots = explorers.Snapshots(student, unit="step")
    with FeatureExtractor(student, ["layer1"]):
        snapshots.add(5)
    assert not any(module._forward_hooks for module in snapshots["step 5"].modules())
    assert list(explorers.Relations(teacher, snapshots, per_class=1).controls["snapshot"].options) == [
        "step 0",
        "step 5",
    ]


def test_students_in_another_form_are_refused(teacher: nn.Module, students: dict) -> None:
    other: dict[str, Any] = {"a": students["distilled"], "b": {"epoch 0": build()}}
    with pytest.raises(ValueError, match="The snapshots of b are epoch 0; expected epoch 0, epoch 1"):
        explorers.Relations(teacher, other)
    for wrong in ({}, {"a": {}}, {"a": students["distilled"], "b": build()}, {"a": {"epoch 0": 3}}):
        with pytest.raises(ValueError, match="networks by snapshot"):
            explorers.Relations(teacher, wrong)
    with pytest.raises(ValueError, match="no layer in CifarResNet named 'layer9'"):
        explorers.Relations(teacher, {"a": build()}, layer_pairs={"layer1": "layer1", "layer9": "layer3"}, per_class=1)
