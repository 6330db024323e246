"""The playground without a browser: what its students learn, how it runs, pauses and fails, and what it shows."""

from __future__ import annotations

import asyncio
import gc
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgb
from PIL import Image
from test_explorers import contrast, named

from course import explorers, plots, readme_images
from course.explorers import Playground, playground, playground_figure
from course.explorers import playground_training as pt
from course.explorers.playground_training import Settings, Training, run_playground
from kdlib import losses

pytestmark = pytest.mark.slow  # it draws

widgets = pytest.importorskip("ipywidgets")

VIEW = "application/vnd.jupyter.widget-view+json"
MOVES: dict[str, Any] = {
    "data": "four clouds",
    "points": 60,
    "noise": 0.4,
    "temperature": 1.0,
    "alpha": 0.5,
    "unlabelled": 100,
    "hidden": 3,
    "seed": 5,
    "argmax": True,
}
NO_LOSS = ("temperature", "alpha", "argmax")  # nothing but the loss depends on them


@pytest.fixture(scope="module", autouse=True)
def teachers_for_this_file() -> Iterator[None]:
    """They learn once; a test that looks at this empties the cache itself."""
    yield
    pt.get_teacher.cache_clear()
    run_playground.cache_clear()


@pytest.fixture
def shown() -> Playground:
    explorer = Playground(steps=40)
    explorer.step(10)
    return explorer


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def picture(explorer: Playground) -> np.ndarray:
    return pixels(bytes(explorer.image.value))


def thumbnail(found: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(found.astype(np.uint8)).resize((78, 27), Image.Resampling.BOX)).astype(int)


def gains(seeds: int, **settings: Any) -> np.ndarray:
    """How much more of the test points the distilled student has right, seed by seed."""
    rows = [run_playground(600, Settings(seed=seed, **settings))[-1] for seed in range(seeds)]
    return np.array([row.distilled_accuracy - row.baseline_accuracy for row in rows])


# Points.


@pytest.mark.parametrize("name", pt.DISTRIBUTIONS)
def test_data_sets_are_balanced_in_the_picture_and_the_same_again(name: str) -> None:
    sample = pt.load_test_sample(name)
    assert (sample.labels.bincount().float() - len(sample) / pt.DISTRIBUTIONS[name].num_classes).abs().max() <= 1
    assert (sample.points.abs() < pt.AXIS_LIMIT).all(dim=1).float().mean() > 0.9
    assert torch.equal(sample.labels, sample.true_labels)
    pt.sample_points.cache_clear()
    assert torch.equal(pt.load_test_sample(name).points, sample.points)


@pytest.mark.parametrize("name", pt.DISTRIBUTIONS)
def test_the_given_share_of_labels_is_wrong(name: str) -> None:
    clean, noisy = pt.labelled_sample(name, 50, 0.0, 3), pt.labelled_sample(name, 50, 0.3, 3)
    assert torch.equal(clean.points, noisy.points)
    assert torch.equal(clean.labels, clean.true_labels)
    assert int((noisy.labels != noisy.true_labels).sum()) == 15
    assert noisy.labels.max() < pt.DISTRIBUTIONS[name].num_classes


def test_more_points_and_more_noise_come_on_top_of_what_was_there() -> None:
    few, many = pt.labelled_sample("two moons", 30, 0.2, 0), pt.labelled_sample("two moons", 60, 0.2, 0)
    assert torch.equal(many.points[:30], few.points)
    less, more = (pt.labelled_sample("two moons", 60, noise, 0) for noise in (0.1, 0.3))
    assert ((less.labels != less.true_labels) <= (more.labels != more.true_labels)).all()


def test_no_network_is_trained_on_test_points() -> None:
    test = {tuple(point) for point in pt.load_test_sample("two moons").points.tolist()}
    for points in (
        pt.get_teacher("two moons").sample.points,
        *(pt.labelled_sample("two moons", 200, 0.0, seed).points for seed in range(20)),
        *(pt.unlabelled_points("two moons", 400, seed) for seed in range(20)),
    ):
        assert not test & {tuple(point) for point in points.tolist()}


# Training.


def test_steps_by_hand() -> None:
    """The same two students as two networks, with torch's Adam."""
    settings = Settings(points=20, unlabelled=50, temperature=3.0, alpha=0.3, hidden=5)
    training = Training(settings)
    training.train(4)
    start = Training(settings)
    x, labels = start.sample.points, start.sample.labels
    everything = torch.cat((x, start.unlabelled))
    teacher_logits = start.teacher(everything)
    for index in (0, 1):
        first, bias, second, end = (
            weight[index].detach().clone().requires_grad_() for weight in start._students.weights
        )

        def net(points: torch.Tensor, first=first, bias=bias, second=second, end=end) -> torch.Tensor:
            return torch.tanh(points @ first + bias) @ second + end

        parameters = [first, bias, second, end]
        adam = torch.optim.Adam(parameters, lr=pt.LEARNING_RATE)
        for _ in range(4):
            hard = F.cross_entropy(net(x), labels)
            loss = 0.3 * hard + 0.7 * losses.kd(net(everything), teacher_logits, 3.0) if index else hard
            adam.zero_grad()
            loss.backward()
            adam.step()
        for mine, expected in zip(training._students.weights, parameters, strict=True):
            torch.testing.assert_close(mine[index], expected, rtol=1e-4, atol=1e-5)


def test_with_argmax_the_teacher_is_a_source_of_hard_labels() -> None:
    """The taught student is then the one that hard labels make of the teacher's best classes; T plays no part."""
    settings = Settings(alpha=0.0, argmax=True)
    training = Training(settings)
    training.train(1)
    best = training.teacher(training.sample.points).argmax(dim=1)
    other = Training(replace(settings, temperature=1.0))
    other.sample = replace(other.sample, labels=best)
    other.train(20)
    training.train(19)
    assert training.rows[-1].distilled_accuracy == other.rows[-1].baseline_accuracy == other.rows[-1].distilled_accuracy
    one_hot = training.soft_labels()
    assert torch.equal(one_hot.argmax(dim=1), best)
    assert set(one_hot.flatten().tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="argmax cannot be 'yes': it is True or False"):
        Playground(argmax="yes")


def test_most_of_the_gain_is_corrected_labels_and_soft_ones_add_to_it() -> None:
    """Lesson 05's claim: labels, the teacher's best class, its soft labels, each ahead of the one before."""
    cases = [[run_playground(300, Settings(seed=seed, argmax=argmax))[-1] for seed in range(6)] for argmax in (1, 0)]
    argmax, soft = (np.mean([row.distilled_accuracy for row in rows]) for rows in cases)
    labels = np.mean([row.baseline_accuracy for row in cases[0]])
    assert soft > argmax > labels
    assert argmax - labels > 2 * (soft - argmax)


def test_both_students_start_equal_and_differ_in_their_targets_only() -> None:
    training = Training(Settings(alpha=1.0))
    training.train(50)
    for weight in training._students.weights:
        assert torch.equal(weight[0], weight[1])  # with alpha = 1 their targets are the same
    row = training.rows[-1]
    assert (row.baseline_accuracy, row.baseline_agreement, row.baseline_hard_loss) == (
        row.distilled_accuracy,
        row.distilled_agreement,
        row.distilled_hard_loss,
    )


def test_the_baseline_depends_on_nothing_but_its_labels() -> None:
    plain, other = (Training(Settings(**more)) for more in ({}, {"temperature": 16.0, "alpha": 0.9, "unlabelled": 200}))
    for training in (plain, other):
        training.train(30)
    assert all(
        torch.allclose(a[0], b[0], atol=1e-4)
        for a, b in zip(plain._students.weights, other._students.weights, strict=True)
    )
    assert not torch.allclose(plain._students.weights[0][1], other._students.weights[0][1], atol=1e-2)


def test_the_same_settings_give_the_same_rows_however_the_steps_are_cut() -> None:
    whole, cut = Training(Settings(noise=0.1)), Training(Settings(noise=0.1))
    whole.train(30)
    for steps in (1, 4, 3, 17, 5):
        cut.train(steps)
        cut.evaluate(), cut.student_maps()
    assert whole.rows == cut.rows
    assert [row.step for row in whole.rows] == [0, 5, 10, 15, 20, 25, 30]


def test_training_leaves_the_learners_random_numbers_alone() -> None:
    state = torch.random.get_rng_state()
    pt.get_teacher.cache_clear()
    Training(Settings(unlabelled=50)).train(5)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", pt.DISTRIBUTIONS)
def test_the_teacher_knows_its_data_and_students_do_not_change_it(name: str) -> None:
    training = Training(Settings(data=name))
    training.train(1)
    weights = [weight.clone() for weight in training.teacher._network.weights]
    training.train(20)
    assert all(torch.equal(a, b) for a, b in zip(weights, training.teacher._network.weights, strict=True))
    best = 0.8 if name == "four clouds" else 0.95  # the clouds overlap
    assert training.rows[-1].teacher_accuracy > best
    assert training.teacher.step == pt.TEACHER_STEPS


def test_distilling_helps_in_the_default_setting() -> None:
    gain = gains(10)
    assert gain.mean() > 0.1  # 0.19 when this was written
    assert (gain > 0).sum() >= 9


def test_it_helps_less_with_right_labels_and_next_to_nothing_with_many() -> None:
    noisy, few, many = gains(5), gains(5, noise=0.0), gains(5, noise=0.0, points=200)
    assert noisy.mean() > few.mean() > many.mean()
    assert abs(many.mean()) < 0.02


def test_another_data_set_size_or_seed_resets_and_the_rest_continues() -> None:
    for name, value in MOVES.items():
        training = Training(Settings())
        training.train(10)
        weights, sample = [weight.clone() for weight in training._students.weights], training.sample
        training.update_settings(replace(Settings(), **{name: value}))
        is_reset = name in ("data", "hidden", "seed")
        assert (training.step, len(training.rows)) == ((0, 0) if is_reset else (10, 3)), name
        if not is_reset:
            assert all(torch.equal(a, b) for a, b in zip(weights, training._students.weights, strict=True)), name
        assert (training.sample is sample) == (name in (*NO_LOSS, "hidden", "unlabelled")), name
        training.train(5)


def test_a_training_that_was_reset_is_a_new_training() -> None:
    training = Training(Settings())
    training.train(10)
    training.update_settings(Settings(hidden=5, seed=3))
    training.train(10)
    assert tuple(training.rows) == run_playground(10, Settings(hidden=5, seed=3))


# What is shown.


def test_a_notebook_gets_a_view_a_picture_and_one_line(shown: Playground) -> None:
    bundle, metadata = shown._repr_mimebundle_(include=None, exclude=None)
    assert set(bundle) == {VIEW, "image/png", "text/plain"}
    assert bundle["text/plain"] == repr(shown)
    assert repr(shown).startswith("Playground explorer: data = two moons, points = 30")
    assert repr(shown).endswith("; step 10")
    assert "\n" not in repr(shown)
    assert metadata == {"image/png": {"alt": shown.alt}}
    assert len(bundle["image/png"]) < 100_000
    assert np.abs(pixels(bundle["image/png"]) - picture(shown)).mean() < 4  # 256 colours


def test_titles_stand_out_from_white(shown: Playground) -> None:
    titles = [axes._left_title for axes in shown.figure.axes]
    assert [title.get_text() for title in titles if contrast(title.get_color()) < 4.5] == []
    assert sum(bool(title.get_text()) for title in titles) == 3


def test_controls_and_buttons_have_labels_and_work_with_a_keyboard(shown: Playground) -> None:
    assert set(shown.controls) == set(MOVES)
    for control in (*shown.controls.values(), shown.run_button, shown.reset_button):
        kind = type(control).__name__
        # Whether a ToggleButton is pressed is told by its colour alone.
        assert kind in ("IntSlider", "FloatSlider", "FloatLogSlider", "Dropdown", "Button", "Checkbox")
        assert not control.disabled
        assert control.tabbable is not False
    assert all(button.description.strip() for button in (shown.run_button, shown.reset_button))
    assert set(named(shown)) == set(shown.controls)
    assert shown._buttons in shown.view.children


def test_all_axes_are_labelled_and_no_text_is_cut(shown: Playground) -> None:
    plots.check_labels(shown.figure)
    width, height = shown.figure.bbox.size
    for axes in shown.figure.axes:
        box = axes.get_tightbbox(shown._canvas.get_renderer())
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height


@pytest.mark.parametrize("name", MOVES)
def test_moving_a_control_changes_text_and_picture(shown: Playground, name: str) -> None:
    before, text = picture(shown), shown._text.value
    shown.controls[name].value = MOVES[name]
    assert shown.error == ""
    assert shown._text.value != text
    if name != "alpha":  # it acts with the next step only
        assert (picture(shown) != before).any()
    step = shown.training.step
    shown.step(5)
    assert shown.training.step == step + 5


def test_artists_are_changed_in_place(shown: Playground) -> None:
    moving = [*shown._cached_artists, *shown._live_artists]
    children = [len(axes.get_children()) for axes in shown.figure.axes]
    shown.set(**MOVES)
    shown.step(50)
    assert [len(axes.get_children()) for axes in shown.figure.axes] == children
    assert all(one is other for one, other in zip(moving, [*shown._cached_artists, *shown._live_artists], strict=True))


@pytest.mark.parametrize("change", ["the teacher", "the axis of the steps"])
def test_after_an_interrupted_cell_the_picture_fits_the_training(change: str) -> None:
    def train(explorer: Playground) -> None:
        explorer.set(data="three spirals") if change == "the teacher" else explorer.step(50)

    def stop() -> None:
        raise KeyboardInterrupt

    interrupted, untouched = Playground(steps=40), Playground(steps=40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interrupted, "invalidate_cache", stop)
        with pytest.raises(KeyboardInterrupt):
            train(interrupted)
    train(untouched)
    for explorer in (interrupted, untouched):
        explorer.set(temperature=1.0)
    assert interrupted.png() == untouched.png()


def test_the_blitted_picture_is_that_of_the_whole_figure(shown: Playground) -> None:
    shown.set(data="three spirals", unlabelled=100)
    shown.step(60)
    quick = picture(shown)
    for artist in (*shown._cached_artists, *shown._live_artists):
        artist.set_animated(False)
    with plots.style():
        shown._canvas.draw()
    whole = np.asarray(shown._canvas.buffer_rgba())[..., :3].astype(int)
    assert (np.abs(quick - whole).max(axis=2) > 40).mean() < 0.01


def test_the_boundary_lies_where_the_answer_changes() -> None:
    ticks = np.linspace(-pt.AXIS_LIMIT, pt.AXIS_LIMIT, pt.GRID_SIDE)
    right = 1 / (1 + np.exp(-20 * (ticks - 0.3)))
    right = np.repeat(right[None], pt.GRID_SIDE, axis=0)
    (line,) = playground_figure.decision_boundary(np.stack((1 - right, right), axis=-1))
    assert line[:, 0] == pytest.approx(0.3, abs=0.02)
    assert np.ptp(line[:, 1]) == pytest.approx(2 * pt.AXIS_LIMIT)
    third = np.zeros_like(right)
    assert len(playground_figure.decision_boundary(np.stack((third, 1 - right, right), axis=-1))) == 1


def test_certain_points_have_the_colour_of_their_class_and_others_are_pale() -> None:
    sure, unsure = playground_figure.shade(np.array([[1.0, 0.0], [0.5, 0.5]]))
    assert np.allclose(sure, 1 - 0.58 * (1 - playground_figure.CLASS_RGB[0]))
    assert unsure.min() > 0.9


def test_the_legend_names_points_without_a_label_only_where_there_are_some(shown: Playground) -> None:
    def entries() -> dict[str, Any]:
        (legend,) = shown.figure.legends
        named = zip(legend.get_texts(), legend.get_lines(), strict=True)
        return {text.get_text(): handle for text, handle in named if text.get_visible() and handle.get_visible()}

    before = shown.png()
    assert "no label" not in entries()
    shown.set(unlabelled=100)
    (drawn,) = (line for line in shown.figure.axes[2].lines if line.get_marker() == ".")
    assert entries()["no label"].get_markersize() == drawn.get_markersize()
    shown.set(unlabelled=0)
    assert "no label" not in entries()
    assert shown.png() == before


def test_the_numbers_in_the_picture_are_those_of_the_text_and_the_table(shown: Playground) -> None:
    row, text = shown.training.evaluate(), shown.describe()
    _, baseline, distilled = shown._drawing.panels
    assert baseline.numbers.get_text() == f"right {row.baseline_accuracy:.1%}, as teacher {row.baseline_agreement:.1%}"
    assert (
        distilled.numbers.get_text() == f"right {row.distilled_accuracy:.1%}, as teacher {row.distilled_agreement:.1%}"
    )
    assert f"student on hard labels {row.baseline_accuracy:.1%}, distilled student {row.distilled_accuracy:.1%}" in text
    assert len(text.splitlines()) == 3
    assert "30 labelled points, 6 of the labels wrong" in text
    last = shown.table().splitlines()[-1].split()
    shares = (
        row.teacher_accuracy,
        row.baseline_accuracy,
        row.distilled_accuracy,
        row.baseline_agreement,
        row.distilled_agreement,
    )
    assert last == ["10", *(f"{100 * share:.1f}" for share in shares)]


def test_the_table_is_short_and_ends_with_the_last_step() -> None:
    explorer = Playground()
    assert len(explorer.table().splitlines()) == 3
    explorer.step(203)
    lines = explorer.table().splitlines()
    assert len(lines) <= 2 + playground.TABLE_ROWS + 1
    steps = [int(line.split()[0]) for line in lines[2:]]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, 203)


def test_the_small_plots_grow_with_the_training(shown: Playground) -> None:
    assert shown._drawing.curves.bottom.get_xlim() == (0, 40)
    shown.step(40)
    assert shown._drawing.curves.bottom.get_xlim() == (0, 80)
    line = shown._drawing.curves.accuracies[2]
    assert list(line.get_xdata()) == [row.step for row in shown.training.rows]
    assert line.get_ydata()[-1] == pytest.approx(100 * shown.training.rows[-1].distilled_accuracy)


# Run, Pause, Reset.


def frames(explorer: Playground, number: int) -> None:
    for _ in range(number):
        explorer._frame(explorer._run_number)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """An event loop that only records its tasks; frames are then called by hand."""
    tasks: list[Any] = []

    class Fake:
        def create_task(self, work: Any) -> Any:
            work.close()
            tasks.append(work)
            return work

    monkeypatch.setattr(playground.asyncio, "get_running_loop", Fake)
    return tasks


def test_run_trains_a_few_steps_a_frame_and_pauses_at_its_end(loop: list[Any]) -> None:
    explorer = Playground(steps=20)
    explorer.step(5)
    explorer.run_button.click()
    assert (len(loop), explorer.running, explorer.run_button.description) == (1, True, "Pause")
    for expected in (10, 15, 20):
        before = picture(explorer)
        frames(explorer, 1)
        assert explorer.training.step == expected
        assert (picture(explorer) != before).any()
        assert explorer._progress.value == f"Running at step {expected}"
    frames(explorer, 5)
    assert explorer.training.step == 25
    assert (explorer.running, explorer.run_button.description) == (False, "Run")
    assert explorer._progress.value == "Paused at step 25"
    explorer.run_button.click()  # for as many again
    frames(explorer, 10)
    assert explorer.training.step == 45


def test_a_run_has_as_many_steps_as_were_asked_for(loop: list[Any]) -> None:
    explorer = Playground(steps=12)
    for run in (1, 2):
        explorer.run_button.click()
        frames(explorer, 10)
        assert explorer.training.step == 12 * run


def test_pause_stops_and_run_continues(loop: list[Any], shown: Playground) -> None:
    shown.run()
    old = shown._run_number
    frames(shown, 2)
    shown.run_button.click()
    assert not shown.running
    frames(shown, 2)
    assert shown.training.step == 20
    shown.run()
    shown._frame(old)  # of the run before, which was still asleep
    assert shown.training.step == 20
    frames(shown, 1)
    assert shown.training.step == 25


def test_reset_pauses_and_restores_the_initial_weights(loop: list[Any], shown: Playground) -> None:
    rows = list(shown.training.rows)
    shown.run()
    frames(shown, 1)
    shown.reset_button.click()
    assert (shown.running, shown.training.step) == (False, 0)
    assert "Step 0." in shown._text.value
    shown.step(10)
    assert shown.training.rows == rows


def test_a_run_is_what_step_does(loop: list[Any]) -> None:
    there, here = Playground(), Playground()
    here.step(20)
    there.run()
    frames(there, 4)
    assert there.training.rows == here.training.rows
    assert there.describe() == here.describe()
    there.pause()
    assert (picture(there) == picture(here)).all()


def test_controls_act_while_it_runs(loop: list[Any], shown: Playground) -> None:
    shown.run()
    frames(shown, 1)
    shown.controls["noise"].value = 0.0
    assert "0 of the labels wrong" in shown._text.value
    frames(shown, 1)
    assert (shown.running, shown.training.step) == (True, 20)
    shown.controls["hidden"].value = 4
    assert shown.training.step == 0
    frames(shown, 7)
    assert (shown.running, shown.training.step) == (True, 35)
    frames(shown, 1)  # the run has as many steps as a new one
    assert (shown.running, shown.training.step) == (False, 40)


def test_the_teacher_is_trained_first_and_shown(loop: list[Any]) -> None:
    pt.get_teacher.cache_clear()
    explorer = Playground()
    assert explorer._progress.value == "Nobody has learnt anything"
    explorer.run()
    frames(explorer, 1)
    assert explorer._progress.value == "The teacher learns: step 10 of 300"
    first = explorer._drawing.panels[0].image.get_array().copy()
    frames(explorer, 1)
    assert (explorer._drawing.panels[0].image.get_array() != first).any()
    assert explorer.training.step == 0
    frames(explorer, 29)
    assert (explorer.training.teacher.step, explorer.training.step) == (300, 5)
    explorer.reset()
    assert explorer._progress.value == "The teacher has learnt; press Run"
    explorer.pause()


def test_nothing_trains_when_a_control_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    pt.get_teacher.cache_clear()
    explorer = Playground()

    def refuse(*_: Any) -> None:
        raise AssertionError("trained in a callback")

    monkeypatch.setattr(pt.BatchedMLP, "step", refuse)
    explorer.set(**MOVES)
    assert explorer.training.teacher.step == 0


def test_an_error_while_it_runs_is_shown_and_ends_the_run(
    loop: list[Any], shown: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = picture(shown)

    def broken(*_: Any) -> None:
        raise KeyError("<b>no such thing</b>")

    shown.run()
    monkeypatch.setattr(shown.training, "_train_step", broken)
    frames(shown, 1)
    assert "KeyError" in shown._status.value
    assert "&lt;b&gt;no such thing" in shown._status.value
    assert 'role="alert"' in shown._status.value
    assert (shown.running, shown.busy, shown.run_button.description) == (False, False, "Run")
    assert (picture(shown) == before).all()
    monkeypatch.undo()
    shown.step(5)
    assert (shown._status.value, shown.training.step) == ("", 15)


def test_one_runs_at_a_time_and_a_new_one_pauses_it(loop: list[Any], shown: Playground) -> None:
    shown.run()
    other = Playground()  # such as the cell's, run again
    assert not shown.running
    shown.run()
    other.run()
    assert (shown.running, other.running) == (False, True)
    del other
    gc.collect()
    shown.run()
    assert shown.running


def test_a_closed_one_does_not_run_on(loop: list[Any], shown: Playground) -> None:
    shown.run()
    shown.close()
    assert not shown.running
    frames(shown, 1)
    assert shown.training.step == 10


def test_it_ends_when_its_image_is_taken_off_the_page(shown: Playground) -> None:
    async def play() -> None:
        shown.run()
        await asyncio.sleep(0)
        shown.image.close()
        await asyncio.wait_for(shown._task, 20)

    asyncio.run(play())
    assert not shown.running
    assert shown.training.step < 50


def in_a_loop(explorer: Playground, during: Callable[[], Any]) -> None:
    """Run in a real event loop, with something else that wants to be done there."""

    async def play() -> None:
        explorer.run()
        await asyncio.sleep(0)
        during()
        await asyncio.wait_for(explorer._task, 60)

    asyncio.run(play())


def test_a_real_loop_runs_to_the_end_and_does_other_things_in_between(shown: Playground) -> None:
    seen: list[int] = []

    async def play() -> None:
        shown.run()
        while shown.running:
            seen.append(shown.frames)
            await asyncio.sleep(0)
        await shown._task

    asyncio.run(play())
    assert shown.training.step == 50
    assert set(seen) >= set(range(1, 8))  # it was let in between any two frames


def test_a_control_can_move_between_frames(shown: Playground) -> None:
    in_a_loop(shown, lambda: shown.set(temperature=1.0))
    assert shown.training.settings.temperature == 1.0
    assert "at T = 1 on these" in shown._text.value


def test_cancelling_the_task_leaves_a_paused_explorer(shown: Playground) -> None:
    async def play() -> None:
        shown.run()
        await asyncio.sleep(0)
        shown._task.cancel()
        await asyncio.gather(shown._task, return_exceptions=True)

    asyncio.run(play())
    assert (shown.running, shown.run_button.description) == (False, "Run")


def test_without_an_event_loop_the_message_names_step(shown: Playground) -> None:
    with pytest.raises(ValueError, match=r"step\(100\)"):
        shown.run()
    shown.run_button.click()  # in a callback the error is in the status line
    assert "step(100)" in shown._status.value
    assert not shown.running


@pytest.mark.parametrize("steps", [0, -1, 2.5, "many"])
def test_impossible_numbers_of_steps_are_refused(steps: Any, shown: Playground) -> None:
    with pytest.raises(ValueError, match="steps must be a whole number"):
        Playground(steps=steps)
    with pytest.raises(ValueError, match="steps must be a whole number"):
        shown.step(steps)


def test_starting_with_what_is_impossible_is_an_error(shown: Playground) -> None:
    with pytest.raises(ValueError, match="There is no control of the playground explorer named 'colour'"):
        Playground(colour="red")
    with pytest.raises(ValueError, match="data cannot be 'three moons'"):
        shown.set(data="three moons")
    assert explorers.Playground is Playground


# The picture for the README.


def test_the_command_writes_the_same_picture_twice(tmp_path: Path) -> None:
    out = [tmp_path / "one.png", tmp_path / "new" / "two.png"]
    for path in out:
        readme_images.main(["playground", str(path), "--steps", "40"])
    assert out[0].read_bytes() == out[1].read_bytes()
    found = pixels(out[0].read_bytes())
    assert found.shape[1] == pytest.approx(readme_images.PLAYGROUND_DPI * Playground.size[0], abs=2)
    explorer = Playground()
    explorer.step(40)
    # What moves is there too: students at step 0 are 10 away from this.
    assert np.abs(thumbnail(found) - thumbnail(picture(explorer))).mean() < 4
    assert out[0].stat().st_size < 300_000
    below = found[round(0.91 * len(found)) :]  # where the legend stands
    for colour in (plots.INK, plots.TEACHER.colour, plots.ALERT):
        assert (below == np.round(255 * np.array(to_rgb(colour)))).all(axis=2).sum() > 20


def test_soft_colours_stay_without_bands_in_what_is_stored() -> None:
    explorer = Playground()
    explorer.step(100)
    image = bytes(explorer.image.value)
    moved = np.abs(pixels(image) - pixels(plots.reduce_colours(image))).max(axis=2)
    assert (moved > 10).mean() < 0.01


def test_the_command_runs_as_a_module_without_a_warning(tmp_path: Path) -> None:
    module = "course.readme_images"
    command = [sys.executable, "-W", "error", "-m", module, "playground", str(tmp_path / "out.png"), "--steps", "5"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    assert "Step 5. Right: teacher" in ran.stdout
    assert pixels((tmp_path / "out.png").read_bytes()).std() > 10


def test_a_teacher_that_another_training_trained_is_followed() -> None:
    pt.get_teacher.cache_clear()
    first = Training(Settings())
    first.evaluate()  # what displaying it does
    second = Training(Settings())
    second.train(10)
    first.train(10)
    assert first.rows == second.rows
