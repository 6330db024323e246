"""Detection: scenes, maps of centres, the detector's loss, its distillation through kdlib, and the paired runs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from course import plots
from course.detection import centers, detector, experiment, scenes
from course.detection.detector import Detector, adapter, detection_loss, heat_map_kd, method_named
from course.detection.experiment import Budget, Experiment, Run, run_student, stored_answers
from course.detection.figure import scene_alt, scene_figure
from course.detection.gains import complete, describe, gains
from course.detection.precision import average_precision
from course.detection.scenes import MOST_PIECES, SIDES, SIZE, Scenes
from course.workers import in_processes
from kdlib import data, losses, train
from kdlib.distiller import Distiller
from kdlib.study.runs_file import read_rows
from kdlib.tasks import MultiLabel

pytestmark = pytest.mark.slow  # it draws

C = centers.NUM_CLASSES
SMALL = Budget(
    4, 6, scenes=24, validation_scenes=8, test_scenes=8, epochs=1, batch_size=8, teacher_scenes=30, teacher_epochs=1
)


@pytest.fixture(scope="module")
def drawn() -> Scenes:
    return scenes.draw("train", 48)


def maps_of(drawn: Scenes) -> Tensor:
    return centers.encode(drawn.boxes, drawn.classes, SIZE)


def as_output(maps: Tensor) -> Tensor:
    """What a perfect detector gives: logits whose sigmoid is the heat."""
    return torch.cat((maps[:, :C].logit(), maps[:, C:]), dim=1)


def detector_of(width: int, seed: int) -> Detector:
    torch.manual_seed(seed)
    return Detector(width)


# Scenes.


def test_a_scene_is_a_function_of_its_split_seed_and_number(drawn: Scenes) -> None:
    again = scenes.draw("train", 10, first=30)
    for name in ("canvases", "boxes", "classes", "pieces"):
        assert torch.equal(getattr(again, name), getattr(drawn, name)[30:40]), name
    assert not torch.equal(scenes.draw("train", 10, first=30, seed=1).canvases, again.canvases)
    assert drawn.fingerprint == scenes.draw("train", 48).fingerprint != again.fingerprint


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_pieces_come_from_their_own_split(split: str) -> None:
    drawn = scenes.draw(split, 200)
    source = getattr(data.load("fashion-mnist"), split)
    place = {int(index): number for number, index in enumerate(source.indices)}
    there = drawn.classes >= 0
    pieces, classes = drawn.pieces[there].tolist(), drawn.classes[there].tolist()
    assert set(pieces) <= set(place)
    assert classes == [int(source.labels[place[piece]]) for piece in pieces]
    assert set(classes) == set(range(C))
    assert (drawn.pieces[~there] == -1).all()


def test_training_and_validation_scenes_share_no_piece() -> None:
    used = [scenes.draw(split, 500).pieces for split in ("train", "validation")]
    first, second = (set(pieces[pieces >= 0].tolist()) for pieces in used)
    assert len(first) > 1_000
    assert len(second) > 500
    assert not first & second


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_box_holds_the_piece_that_it_is_said_to_hold(split: str) -> None:
    drawn = scenes.draw(split, 30)
    source = getattr(data.load("fashion-mnist"), split)
    for number in range(len(drawn)):
        slot = int((drawn.classes[number] >= 0).nonzero().max())  # the one that nothing lies upon
        piece = source.images[source.indices == drawn.pieces[number, slot]][0, 0]
        rows, columns = ((piece > scenes.THRESHOLD).any(1 - axis).nonzero() for axis in (0, 1))
        inner = piece[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].float()
        x0, y0, x1, y1 = drawn.boxes[number, slot].int().tolist()
        seen = drawn.canvases[number, 0, y0:y1, x0:x1].float()
        wanted = F.interpolate(inner[None, None], (y1 - y0, x1 - x0), mode="bilinear")[0, 0]
        counts = wanted > 60
        assert (seen - wanted)[counts].abs().median() < 12


def test_numbers_and_sizes_of_pieces_vary_within_their_limits(drawn: Scenes) -> None:
    counts = (drawn.classes >= 0).sum(1)
    assert set(counts.tolist()) == set(range(1, MOST_PIECES + 1))
    extents = torch.cat([scene.boxes[:, 2:] - scene.boxes[:, :2] for scene in map(drawn.__getitem__, range(48))])
    longer = extents.amax(1)
    assert SIDES[0] <= longer.min() < 18
    assert 28 < longer.max() <= SIDES[1]
    boxes = drawn.boxes[drawn.classes >= 0]
    assert ((boxes >= 0) & (boxes <= SIZE)).all()


def test_boxes_overlap_sometimes_and_by_little() -> None:
    drawn = scenes.draw("train", 300)
    overlaps = []
    for number in range(len(drawn)):
        boxes = drawn[number].boxes
        for one in range(len(boxes)):
            for other in boxes[:one]:
                shared = torch.minimum(boxes[one, 2:], other[2:]) - torch.maximum(boxes[one, :2], other[:2])
                overlaps.append(float(shared.min()))
    assert max(overlaps) <= scenes.MOST_OVERLAP
    assert sum(overlap > 0 for overlap in overlaps) > 10


def test_canvases_are_dark_and_noisy(drawn: Scenes) -> None:
    assert drawn.canvases.dtype == torch.uint8
    outside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    for x0, y0, x1, y1 in drawn[0].boxes.int().tolist():
        outside[y0:y1, x0:x1] = False
    background = drawn.canvases[0, 0][outside].float()
    assert background.max() < sum((scenes.DARKEST[1], scenes.NOISE[1]))
    assert background.std() > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("training", 3), "no split named 'training'.*train"),
        (("train", 0), "count is a whole number"),
        (("train", 2.5), "count is a whole number"),
    ],
)
def test_scenes_that_cannot_be_drawn_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scenes.draw(*arguments)


def test_a_scene_that_is_not_there_is_refused(drawn: Scenes) -> None:
    with pytest.raises(IndexError, match="48 scenes; got number 48"):
        drawn[48]


# Boxes and maps.


@st.composite
def boxes_apart(draw: Callable[[Any], Any]) -> tuple[Tensor, Tensor]:
    """Boxes with corners at whole pixels, whose centres lie in cells that are no neighbours, and their classes."""
    blocks = draw(st.lists(st.integers(0, 15), min_size=1, max_size=6, unique=True))  # 16 pixels a side
    boxes, classes = [], []
    for block in blocks:
        x, y = 16 * (block % 4) + 8, 16 * (block // 4) + 8
        dx, dy = draw(st.integers(-3, 3)), draw(st.integers(-3, 3))
        left, right = (draw(st.integers(1, 5)) for _ in range(2))
        up, down = (draw(st.integers(1, 5)) for _ in range(2))
        boxes.append([x + dx - left, y + dy - up, x + dx + right, y + dy + down])
        classes.append(draw(st.integers(0, C - 1)))
    return torch.tensor([boxes], dtype=torch.float32), torch.tensor([classes])


def found_in(decoded: dict[str, Tensor]) -> set[tuple[float, ...]]:
    sure = decoded["scores"] == 1
    return {
        (int(label), *box) for label, box in zip(decoded["labels"][sure], decoded["boxes"][sure].tolist(), strict=True)
    }


@settings(max_examples=60, deadline=None, derandomize=True)
@given(boxes_apart())
def test_encoded_boxes_are_decoded_exactly(given_boxes: tuple[Tensor, Tensor]) -> None:
    boxes, classes = given_boxes
    (decoded,) = centers.decode(as_output(centers.encode(boxes, classes, SIZE)))
    assert found_in(decoded) == {(int(label), *box) for label, box in zip(classes[0], boxes[0].tolist(), strict=True)}


@pytest.mark.parametrize("seed", range(3))
def test_the_boxes_of_every_scene_are_decoded_exactly(seed: int) -> None:
    drawn = scenes.draw("validation", 100, seed=seed)
    for number, decoded in enumerate(centers.decode(as_output(maps_of(drawn)))):
        scene = drawn[number]
        wanted = {(int(label), *box) for label, box in zip(scene.classes, scene.boxes.tolist(), strict=True)}
        assert found_in(decoded) == wanted


def test_heat_falls_with_the_distance_and_large_boxes_have_wide_bumps() -> None:
    small, large = (torch.tensor([[[32.0 - r, 32 - r, 32 + r, 32 + r]]]) for r in (7, 30))
    heat = [centers.encode(boxes, torch.tensor([[3]]), SIZE)[0, 3] for boxes in (small, large)]
    for one in heat:
        assert one[8, 8] == 1 == one.max()
        assert (one[8, 8:].diff() <= 0).all()
    assert heat[1][8, 9] > heat[0][8, 9] > 0


def test_a_box_moved_by_the_radius_keeps_the_overlap() -> None:
    extent = torch.tensor([[8.0, 5.0], [3.0, 8.0], [6.0, 6.0]])
    for (w, h), r in zip(extent.tolist(), centers._radius(extent).tolist(), strict=True):
        shifted = (w - r) * (h - r) / (2 * w * h - (w - r) * (h - r))
        shrunk, grown = (w - 2 * r) * (h - 2 * r) / (w * h), w * h / ((w + 2 * r) * (h + 2 * r))
        assert min(shifted, shrunk, grown) == pytest.approx(centers.MIN_OVERLAP, abs=1e-5)


def test_best_detections_come_first_and_stay_on_the_canvas() -> None:
    torch.manual_seed(0)
    for one in centers.decode(3 * torch.randn(3, C + 4, 16, 16), top_k=7):
        assert one["boxes"].shape == (7, 4)
        assert (one["scores"].diff() <= 0).all()
        assert one["boxes"].min() >= 0
        assert one["boxes"].max() <= SIZE
        assert (one["boxes"][:, :2] <= one["boxes"][:, 2:]).all()


def test_no_two_detections_of_a_class_are_neighbours() -> None:
    torch.manual_seed(0)
    output = torch.cat((torch.randn(1, C, 16, 16), torch.zeros(1, 4, 16, 16)), dim=1)
    (found,) = centers.decode(output, top_k=100)
    corners = found["boxes"][:, :2] / centers.STRIDE
    for label in range(C):
        own = corners[found["labels"] == label]
        assert (torch.cdist(own, own, p=math.inf) + 9 * torch.eye(len(own)) > 1).all()


@pytest.mark.parametrize(
    ("boxes", "classes", "size", "message"),
    [
        ([[[0, 0, 9, 9]]], [[0]], 63, "a multiple of 4"),
        ([[[0, 0, 9, 9]]], [[C]], 64, "from 0 to 9"),
        ([[[0, 0, 9, 70]]], [[0]], 64, "within 0 and 64"),
        ([[[9, 0, 0, 9]]], [[0]], 64, "x0 < x1"),
        ([[[0, 0, 9, math.nan]]], [[0]], 64, "within 0 and 64"),
        ([[0, 0, 9, 9]], [[0]], 64, "N x K x 4"),
        ([[[0, 0, 9, 9]]], [[0, 1]], 64, "classes N x K"),
    ],
)
def test_boxes_that_cannot_be_encoded_are_refused(boxes: Any, classes: Any, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        centers.encode(torch.tensor(boxes, dtype=torch.float32), torch.tensor(classes), size)


def test_maps_of_another_shape_are_not_decoded() -> None:
    with pytest.raises(ValueError, match=r"N x 14 x H x W.*\(2, 10, 16, 16\)"):
        centers.decode(torch.zeros(2, 10, 16, 16))


# Average precision.


def test_perfect_detections_have_a_precision_of_one_and_those_of_another_scene_of_nearly_zero(drawn: Scenes) -> None:
    decoded = centers.decode(as_output(maps_of(drawn)), MOST_PIECES)
    perfect = average_precision(decoded, drawn)
    assert (perfect.ap, perfect.ap50, perfect.ap75) == pytest.approx((1, 1, 1))
    assert average_precision([*decoded[1:], decoded[0]], drawn).ap50 < 0.05


def test_boxes_that_are_a_little_off_count_at_half_and_not_at_three_quarters(drawn: Scenes) -> None:
    found = []
    for one in centers.decode(as_output(maps_of(drawn)), MOST_PIECES):
        x0, y0, x1, y1 = one["boxes"].unbind(1)
        found.append({**one, "boxes": torch.stack((x0, y0, x0 + 0.6 * (x1 - x0), y1), dim=1)})  # an overlap of 0.6
    off = average_precision(found, drawn)
    assert off.ap50 > 0.9
    assert off.ap75 < 0.1


def test_detections_of_other_scenes_are_refused(drawn: Scenes) -> None:
    with pytest.raises(ValueError, match="detections of 1 scenes, and 48 scenes"):
        average_precision(centers.decode(torch.zeros(1, C + 4, 16, 16)), drawn)


def test_without_pycocotools_the_extra_is_named(drawn: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ImportError, match=r'pip install "kdlib\[course\]"'):
        average_precision(centers.decode(torch.zeros(48, C + 4, 16, 16)), drawn)


# The loss.


def test_the_loss_is_that_of_the_paper() -> None:
    drawn = scenes.draw("train", 3)
    target = maps_of(drawn)
    torch.manual_seed(0)
    output = torch.randn(target.shape)
    total, objects = 0.0, int((drawn.classes >= 0).sum())
    for z, y in zip(output[:, :C].flatten().tolist(), target[:, :C].flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        total -= (1 - p) ** 2 * math.log(p) if y == 1 else (1 - y) ** 4 * p**2 * math.log(1 - p)
    for n in range(3):
        for x0, y0, x1, y1 in drawn[n].boxes.tolist():
            x, y = (x0 + x1) / 8, (y0 + y1) / 8
            w, h, dx, dy = output[n, C:, int(y), int(x)].tolist()
            total += 0.1 * (abs(w - (x1 - x0) / 4) + abs(h - (y1 - y0) / 4)) + abs(dx - x % 1) + abs(dy - y % 1)
    assert float(detection_loss(output, target)) == pytest.approx(total / objects, rel=1e-4)


def test_the_loss_has_its_minimum_at_the_target(drawn: Scenes) -> None:
    target = maps_of(drawn)
    centers_only = torch.where(target[:, :C] == 1, 12.0, -12.0)
    best = torch.cat((centers_only, target[:, C:]), dim=1)
    lowest = float(detection_loss(best, target))
    assert lowest < 1e-3
    torch.manual_seed(0)
    for size in (0.1, 1.0, 10.0):
        moved = best + size * torch.randn(best.shape)
        moved[:, :C] = torch.where(target[:, :C] == 1, moved[:, :C].clamp(max=12), moved[:, :C].clamp(min=-12))
        assert float(detection_loss(moved, target)) > lowest


def test_beside_the_centres_the_boxes_do_not_count_and_no_object_is_no_division_by_zero(drawn: Scenes) -> None:
    target = maps_of(drawn)
    output = torch.zeros_like(target, requires_grad=True)
    detection_loss(output, target).backward()
    assert output.grad is not None
    beside = ~(target[:, :C] == 1).any(1, keepdim=True).expand(-1, 4, -1, -1)
    assert (output.grad[:, C:][beside] == 0).all()
    assert (output.grad[:, C:][~beside] != 0).any()
    nothing = torch.zeros(2, C + 4, 16, 16)
    assert 0 < float(detection_loss(nothing, nothing)) < math.inf


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_confident_networks_have_finite_losses_and_gradients(logit: float, drawn: Scenes) -> None:
    target = maps_of(drawn)
    for teacher in (-logit, logit):
        output = torch.full_like(target, logit, requires_grad=True)
        loss = detection_loss(output, target) + heat_map_kd(output, torch.full_like(target, teacher))
        loss.backward()
        assert output.grad is not None
        assert loss.isfinite()
        assert output.grad.isfinite().all()


def test_a_target_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 14, 16, 16\).*\(1, 14, 8, 8\).*encode"):
        detection_loss(torch.zeros(1, 14, 16, 16), torch.zeros(1, 14, 8, 8))


# Distillation.


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_heat_map_is_distilled_by_binary_kl_times_the_temperature_squared(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = (3 * torch.randn(2, C + 4, 4, 4) for _ in range(2))
    p, q = ((maps[:, :C].double() / temperature).sigmoid() for maps in (teacher, student))
    wanted = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum() / 2 * temperature**2
    assert float(heat_map_kd(student, teacher, temperature)) == pytest.approx(float(wanted), rel=1e-5)
    counts = teacher[:, :C].double().sigmoid().amax(1, keepdim=True)
    focused = (counts * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())).sum() / 2 * temperature**2
    assert float(heat_map_kd(student, teacher, temperature, focus=1)) == pytest.approx(float(focused), rel=1e-5)
    moved = torch.cat((teacher[:, :C], student[:, C:]), dim=1)
    assert float(heat_map_kd(moved, teacher, temperature)) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", ["heat map", "features"])
def test_gradient_reaches_the_student_and_not_the_teacher(name: str, drawn: Scenes) -> None:
    student, teacher = detector_of(3, 0), detector_of(5, 1)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    batch = drawn.canvases[:8], maps_of(drawn)[:8], torch.arange(8)
    method = method_named(name, alpha=0.0)
    distiller = Distiller(student, teacher, method, example=batch, adapter=adapter(), task=detector.TASK)
    terms = distiller(batch).terms
    assert len(terms) == 2
    soft = next(term for key, term in terms.items() if key != "hard")
    soft.backward()
    last = student.stem[0].weight.grad
    assert last is not None
    assert last.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in distiller.parameters()}
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


def fitted(student: Detector, drawn: Scenes, name: str, answers: Any, epochs: int = 4, **options: Any) -> train.Result:
    dataset = experiment.as_dataset(drawn)
    recipe = train.Recipe("adamw", 1e-2, batch_size=16)
    settings: dict[str, Any] = {"task": detector.TASK, "adapter": adapter(), "device": "cpu", "precision": "fp32"}
    method = method_named(name, **options)
    return train.fit(
        student, dataset, teacher=answers, method=method, epochs=epochs, recipe=recipe, progress=False, **settings
    )


@pytest.mark.parametrize("name", ["heat map", "features"])
def test_distilling_through_fit_lowers_the_distance_to_the_teacher(name: str, drawn: Scenes) -> None:
    teacher = fitted(detector_of(6, 1), drawn, "hard", None, epochs=6).student
    assert isinstance(teacher, Detector)
    answers = stored_answers(teacher, drawn, layers=("neck",))
    rows = fitted(detector_of(4, 0), drawn, name, answers, epochs=6, alpha=0.5).rows
    term = next(key for key in rows[0] if key not in ("epoch", "seconds", "loss", "hard"))
    assert rows[-1][term] < 0.8 * rows[0][term]


def test_the_same_seed_trains_the_same_student_to_the_bit(drawn: Scenes) -> None:
    answers = stored_answers(detector_of(6, 1), drawn)
    first, second = (fitted(detector_of(4, 0), drawn, "heat map", answers, epochs=1).student for _ in range(2))
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_stored_answers_are_the_teachers_and_shuffled_ones_another_scenes(drawn: Scenes) -> None:
    teacher = detector_of(4, 0).eval()
    numbers = torch.tensor([5, 0, 17])
    batch = drawn.canvases[numbers], None, numbers
    own = stored_answers(teacher, drawn, layers=("neck",))(batch)
    with torch.no_grad():
        wanted = teacher(detector.normalise(drawn.canvases[numbers]))
    assert torch.allclose(own.logits, wanted, atol=1e-5)
    assert own.features["neck"].shape == (3, 8, 16, 16)
    everything = drawn.canvases, None, torch.arange(len(drawn))
    answers = stored_answers(teacher, drawn)(everything).logits.flatten(1)
    mixed = stored_answers(teacher, drawn, shuffled=True)(everything).logits.flatten(1)
    given = torch.cdist(mixed, answers).argmin(1)
    assert (given != torch.arange(len(drawn))).all()
    assert set(given.tolist()) == set(range(len(drawn)))


def test_one_scene_cannot_be_shuffled() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        stored_answers(Detector(2), scenes.draw("train", 1), shuffled=True)


def test_plain_distillation_of_the_heat_map_is_kdlibs_own_with_several_labels_at_once(drawn: Scenes) -> None:
    torch.manual_seed(0)
    student, teacher = (3 * torch.randn(2, C + 4, 16, 16) for _ in range(2))
    pairs = [MultiLabel().rows(maps[:, :C], None)[0] for maps in (student, teacher)]
    wanted = C * 16 * 16 * losses.kd(*pairs, 2.0)
    assert float(heat_map_kd(student, teacher, 2.0)) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"focus": -1.0}, {"temperature": math.nan}])
def test_a_heat_map_is_not_distilled_at_values_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="T above 0 and a focus of at least 0"):
        heat_map_kd(torch.zeros(1, 14, 4, 4), torch.zeros(1, 14, 4, 4), **options)


def test_an_unknown_method_and_a_width_that_is_none_are_refused() -> None:
    with pytest.raises(ValueError, match="no method named 'heatmap'.*'heat map'"):
        method_named("heatmap")
    with pytest.raises(ValueError, match="width is a whole number"):
        Detector(0)


def test_the_student_has_a_twelfth_of_the_teachers_parameters() -> None:
    sizes = [sum(p.numel() for p in Detector(w).parameters()) for w in (Budget.student_width, Budget.teacher_width)]
    assert 11 < sizes[1] / sizes[0] < 13


def test_predicting_leaves_the_mode_as_it_was(drawn: Scenes) -> None:
    model = Detector(2)
    detector.predict(model, drawn.canvases[:3])
    assert model.training
    assert all(module.training for module in model.modules())
    model.neck.eval()  # frozen by hand
    detector.predict(model, drawn.canvases[:3])
    assert (model.training, model.neck.training, model.head.training) == (True, False, True)
    assert not any(module.training for module in model.neck.modules())


# Paired runs.


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """An experiment of few scenes and methods, one rate and two settings for each method."""
    monkeypatch.setattr(experiment, "METHODS", ("hard", "shuffled"))
    monkeypatch.setattr(experiment, "RATES", (2e-3,))
    monkeypatch.setattr(experiment, "SETTINGS", {name: experiment.SETTINGS[name][:2] for name in ("hard", "heat map")})
    monkeypatch.setattr(experiment, "TIMED", 0.01)
    return Experiment(SMALL, tmp_path / "results", tmp_path / "cache")


def silent(_: str) -> None:
    pass


def same_runs(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: text for name, text in row.items() if name not in ("seconds", "latency_ratio")} for row in rows]


def test_a_stopped_experiment_goes_on_and_ends_as_one_that_was_not(small: Experiment, tmp_path: Path) -> None:
    whole = small.run(2, "whole", silent)
    assert [(row["method"], row["seed"]) for row in whole] == [
        (method, str(seed)) for seed in range(2) for method in ("hard", "shuffled")
    ]
    stopped = replace(small, out=tmp_path / "stopped")
    said: list[str] = []

    def stop(text: str) -> None:
        said.append(text)
        if "hard, seed 1," in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.run(2, "first", stop)
    before = read_rows(stopped.runs_path)
    assert 0 < len(before) < len(whole)
    rows = stopped.run(2, "second", silent)
    assert same_runs(rows) == same_runs(whole)
    assert read_rows(stopped.runs_path)[: len(before)] == before
    log = json.loads(stopped.runs_path.with_suffix(".json").read_text())
    assert [session["command"] for session in log["sessions"]] == ["first", "second"]
    assert log["runs"] == len(whole)
    assert all("test" not in name for name in read_rows(stopped.trials_path)[0])


def test_trials_read_no_test_scene_and_runs_read_them_once(small: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment.trained_teacher(SMALL, small.cache)
    read: list[str] = []
    original = experiment.evaluate

    def evaluate(model: Any, drawn: Scenes) -> Any:
        read.append(drawn.split)
        return original(model, drawn)

    monkeypatch.setattr(experiment, "evaluate", evaluate)
    run = Run("hard", 0, 2e-3)
    assert "test_ap50" not in run_student(SMALL, run, small.cache, test=False)
    assert read == ["validation"]
    row = run_student(SMALL, run, small.cache, test=True)
    assert read == ["validation", "validation", "test"]
    assert 0 <= row["test_ap"] <= row["test_ap50"] <= 1
    assert row["latency_ratio"] > 0


def test_a_run_that_diverges_has_a_row_with_its_reason(small: Experiment) -> None:
    row = run_student(SMALL, Run("hard", 0, 1e30), small.cache, test=True)
    assert "not finite" in row["error"]
    assert "test_ap50" not in row


def test_each_way_of_learning_has_the_same_number_of_trials() -> None:
    assert len({len(settings) for settings in experiment.SETTINGS.values()}) == 1
    assert set(experiment.SETTINGS) | set(experiment.TUNED_BY) == set(detector.METHODS)


def test_a_teacher_in_a_damaged_file_is_refused(small: Experiment) -> None:
    experiment.trained_teacher(SMALL, small.cache)
    (path,) = small.cache.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        experiment.trained_teacher(SMALL, small.cache)


# Several runs at a time.


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of this process stand for the processes."""
    monkeypatch.setattr("kdlib.workers.ProcessPoolExecutor", lambda count, **_: ThreadPoolExecutor(count))


def make_one(number: int) -> int:
    if number == 1:
        raise ValueError("planted")
    return 10 * number


def all_of_them(pending: Sequence[Future[Any]], **options: Any) -> Any:
    return wait(pending)  # so that they have ended at the same time


def test_every_run_comes_with_what_was_made_of_it(threads: None) -> None:
    assert sorted(in_processes(make_one, [4, 0, 2, 3], 2)) == [(0, 0), (2, 20), (3, 30), (4, 40)]


def test_after_an_error_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    ended = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            ended.set()
            super().shutdown(wait=wait)

    def make(number: int) -> int:
        begun.append(number)
        if number != 1:
            ended.wait(60)
        return make_one(number)

    monkeypatch.setattr("kdlib.workers.ProcessPoolExecutor", lambda count, **_: Pool(count))
    with pytest.raises(ValueError, match="planted"):
        list(in_processes(make, range(20), 2))
    assert set(begun) <= {0, 1, 2}  # the third took the place of the one that failed


def test_a_run_that_ends_as_ctrl_c_arrives_is_kept(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(pending: Sequence[Future[Any]], **options: Any) -> Any:
        wait(pending)
        raise KeyboardInterrupt

    monkeypatch.setattr("kdlib.workers.wait", interrupted)
    kept: list[tuple[int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        kept.extend(in_processes(make_one, range(4), 2))
    assert kept == [(0, 0), (2, 20), (3, 30)]


def test_after_an_error_no_process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[BaseProcess] = []

    def with_a_process(count: int, mp_context: Any, **_: Any) -> ThreadPoolExecutor:
        begun.append(mp_context.Process(target=time.sleep, args=(600,)))
        begun[0].start()
        return ThreadPoolExecutor(count)

    monkeypatch.setattr("kdlib.workers.ProcessPoolExecutor", with_a_process)
    with pytest.raises(ValueError, match="planted"):
        list(in_processes(make_one, range(4), 2))
    begun[0].join(60)
    assert not begun[0].is_alive()


def test_trials_that_ended_beside_one_that_failed_are_in_the_file(
    small: Experiment, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_on_heat_maps(budget: Budget, run: Run, cache: Path, *, test: bool) -> dict[str, Any]:
        if run.method == "heat map":
            raise RuntimeError("planted")
        return run_student(budget, run, cache, test=test)

    monkeypatch.setattr(experiment, "run_student", fails_on_heat_maps)
    monkeypatch.setattr("kdlib.workers.wait", all_of_them)
    with pytest.raises(RuntimeError, match="planted"):
        replace(small, workers=2).run(1, "the command", silent)
    assert [row["method"] for row in read_rows(small.trials_path)] == ["hard"]


@pytest.mark.parametrize("fields", [{"epochs": 0}, {"scenes": -1}, {"student_width": 2.5}, {"batch_size": 1}])
def test_a_budget_of_nothing_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(fields))} is a whole number"):
        replace(SMALL, **fields)


def test_a_teacher_has_seen_at_least_what_its_student_sees() -> None:
    with pytest.raises(ValueError, match="30 scenes hold the student's 31"):
        replace(SMALL, scenes=31)


def rows_with(planted: dict[str, float], seeds: int) -> list[dict[str, str]]:
    return [
        {
            "method": method,
            "seed": str(seed),
            **{name: str(0.5 + 0.01 * seed + gain + 0.001 * (seed % 2)) for name in ("test_ap50", "test_ap75")},
            "test_ap": str(0.3 + 0.001 * ((seed + len(method)) % 3)),
        }
        for seed in range(seeds)
        for method, gain in planted.items()
    ]


def test_a_planted_gain_is_found_in_points() -> None:
    rows = rows_with({"hard": 0.0, "heat map": 0.06}, 5)
    for number, row in enumerate(rows):
        row["test_ap50"] = str(float(row["test_ap50"]) + 0.0005 * (number % 3))
    (line,) = gains(rows).to_dict("records")
    assert line["gain"] == pytest.approx(6, abs=0.2)
    assert line["verdict"] == "BEATS"
    assert "heat map" in describe(rows)
    assert describe(rows[:2]).startswith("hard: AP50 50")


def test_precisions_that_are_far_apart_are_points_all_the_same() -> None:
    """A control may find nothing at all, and look like fractions beside percent."""
    rows = rows_with({"hard": -0.3, "heat map": 0.0}, 3)
    for number, row in enumerate(rows[1::2]):
        row["test_ap50"] = row["test_ap75"] = row["test_ap"] = str(0.001 * (1 + number))
    assert "heat map" in describe(rows)


def test_a_diverged_run_has_no_gain() -> None:
    rows = rows_with({"hard": 0.0, "features": 0.01}, 3)
    rows[3]["test_ap50"] = ""
    with pytest.raises(ValueError, match="features, seed 1"):
        gains(rows)
    with pytest.raises(ValueError, match="value is one of test_ap50"):
        gains(rows, "accuracy")


# The figure.


def test_the_figure_shows_the_true_boxes_and_those_of_each_network(drawn: Scenes) -> None:
    number = int((drawn.classes >= 0).sum(1).argmax())
    perfect = centers.decode(as_output(maps_of(drawn)))[number]
    nothing = {**perfect, "scores": torch.zeros_like(perfect["scores"])}
    found = {"teacher": perfect, "distilled": nothing}
    fig = scene_figure(drawn[number], found)
    plots.check_labels(fig)
    assert [axes.get_title(loc="left") for axes in fig.axes] == ["true boxes", "teacher", "distilled"]
    assert [len(axes.patches) for axes in fig.axes] == [4, 4, 0]
    corners = {tuple(patch.get_bbox().extents.tolist()) for patch in fig.axes[1].patches}
    assert corners == {tuple(box) for box in drawn[number].boxes.tolist()}
    alt = scene_alt(drawn[number], found)
    assert "4 true boxes" in alt
    assert "distilled network finds nothing" in alt
    assert plots.png(fig)[:4] == b"\x89PNG"


def test_a_figure_of_nothing_is_refused(drawn: Scenes) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        scene_figure(drawn[0], {})


def test_of_several_classes_at_one_place_the_most_certain_is_drawn(drawn: Scenes) -> None:
    box = torch.tensor([[10.0, 10, 30, 30], [11.0, 10, 30, 30], [40.0, 40, 60, 60]])
    found = {"boxes": box, "scores": torch.tensor([0.5, 0.9, 0.4]), "labels": torch.tensor([0, 1, 2])}
    fig = scene_figure(drawn[0], {"teacher": found}, names=[f"class {n}" for n in range(C)])
    assert [text.get_text() for text in fig.axes[1].texts] == ["class 1 90%", "class 2 40%"]


def test_a_box_at_the_upper_edge_has_its_text_inside(drawn: Scenes) -> None:
    box = torch.tensor([[10.0, 3, 30, 23], [10.0, 26, 30, 46]])
    found = {"boxes": box, "scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([0, 1])}
    fig = scene_figure(drawn[0], {"teacher": found}, names=[f"class {n}" for n in range(C)])
    upper, lower = fig.axes[1].texts
    assert 3 <= upper.get_position()[1] <= 23
    assert upper.get_va() == "top"
    assert lower.get_position()[1] <= 26
    assert lower.get_va() == "bottom"


# The command.


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys; from course.detection import detector, experiment, figure, gains, precision, scenes; "
    code += "print([name for name in ('matplotlib', 'torchmetrics', 'pycocotools', 'pandas') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_the_command_names_what_is_wrong_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "course.detection", "--cache", str(tmp_path / "file"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "it is not a folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_diverged_run_does_not_hide_the_others() -> None:
    rows = rows_with({"hard": 0.0, "features": 0.01}, 4)
    lost = next(row for row in rows if (row["method"], row["seed"]) == ("features", "1"))
    lost |= {"test_ap50": "", "test_ap75": "", "test_ap": ""}
    told = describe(rows)
    assert told.startswith("features, seed 1, diverged")
    assert "test_ap50: hard labels" in told
    assert {row["seed"] for row in complete(rows)} == {"0", "2", "3"}  # what `summary` takes
