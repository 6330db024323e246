"""Searches replayed on a map: exact expectations, orders of TPE, what is stored, and what lesson 13 says of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import synthetic

from course import plots
from course.experiments import search_replay
from course.experiments.search_replay import RANDOM, TPE, Replay, SettingsMap, best_so_far, random_search, tpe_order
from kdlib.data import data_dir

BUDGET = {"data": "made-up", "student": "a", "teacher": "b", "images": "10", "epochs": "1", "views": "1"}


def made_map(seeds: int = 3) -> SettingsMap:
    chance = np.random.default_rng(5)
    settings = tuple((alpha, temperature) for alpha in (0.0, 0.1, 1.0) for temperature in (1.0, 4.0, 8.0))
    validation = 90 + chance.normal(size=(seeds, len(settings)))
    return SettingsMap(settings, tuple(range(seeds)), validation, validation - 1, BUDGET)


def made_replay(repetitions: int = 3) -> Replay:
    map = made_map()
    orders = {
        (seed, one): tuple(search_replay.random_order(100 + seed, one, len(map.settings)))
        for seed in map.seeds
        for one in range(repetitions)
    }
    return Replay(map, orders)


def test_the_expectation_of_random_search_is_the_mean_over_all_searches() -> None:
    chance = np.random.default_rng(1)
    values, worth = chance.normal(size=6), chance.normal(size=6)
    for trials in range(1, 7):
        best = [max(chosen, key=lambda i: values[i]) for chosen in itertools.combinations(range(6), trials)]
        expected = (np.mean(values[best]), np.mean(worth[best]))
        assert random_search(values, worth, trials) == pytest.approx(expected)


def test_of_equal_settings_any_is_taken_as_often() -> None:
    values, worth = np.array([1.0, 2.0, 2.0, 0.0, 2.0]), np.array([5.0, 1.0, 3.0, 0.0, 8.0])
    for trials in (1, 3, 5):
        best = [best_so_far(values, order)[trials - 1] for order in itertools.permutations(range(5))]
        expected = (np.mean(values[best]), np.mean(worth[best]))
        assert random_search(values, worth, trials) == pytest.approx(expected)


def test_the_best_so_far_never_falls_and_takes_the_first_of_equals() -> None:
    values = np.array([3.0, 5.0, 5.0, 1.0, 9.0])
    assert best_so_far(values, [3, 0, 2, 1, 4]) == [3, 0, 2, 2, 4]
    assert best_so_far(values, [1, 2]) == [1, 1]


def test_what_is_kept_leaves_the_seed_of_the_search_out() -> None:
    map = made_map()
    np.testing.assert_allclose(map.kept(1), map.validation[[0, 2]].mean(0))
    np.testing.assert_allclose(map.kept(1, test=True), map.test[[0, 2]].mean(0))
    np.testing.assert_array_equal(map.promised(1), map.validation[1])
    assert map.settings[map.default] == (0.1, 4.0)


def test_without_noise_between_seeds_every_promise_is_kept() -> None:
    map = made_map()
    same = SettingsMap(map.settings, map.seeds, np.tile(map.validation[0], (3, 1)), map.test, BUDGET)
    curve = Replay(same, made_replay().orders).mean_curve(TPE, [1, 4, 9])
    np.testing.assert_allclose(curve[:, 0], curve[:, 1])
    assert curve[-1, 0] == pytest.approx(map.validation[0].max())


def test_a_curve_is_the_mean_over_the_stored_orders() -> None:
    replay = made_replay()
    values, worth = replay.map.promised(2), replay.map.kept(2)
    found = replay.curve(TPE, 2, [4])
    best = [max(replay.order(TPE, 2, one)[:4], key=lambda i: values[i]) for one in range(3)]
    assert found[0] == pytest.approx([np.mean(values[best]), np.mean(worth[best])])


def test_a_random_order_has_every_setting_once() -> None:
    order = made_replay().order(RANDOM, 0, 7)
    assert sorted(order) == list(range(9))
    assert order == made_replay().order(RANDOM, 0, 7)
    assert order != made_replay().order(RANDOM, 0, 8)


def test_tpe_tries_new_settings_and_learns_where_there_is_something_to_learn() -> None:
    pytest.importorskip("optuna")
    side = np.linspace(0, 1, 20)
    peak = -((side[:, None] - 0.6) ** 2 + (side - 0.2) ** 2).ravel()  # as in the lesson
    left = []
    for seed in range(10):
        order, asked = tpe_order(peak.tolist(), (20, 20), seed, length=20)
        assert len(set(order)) == len(order) == 20
        assert asked >= len(order)
        left.append(-peak[order].max())
    assert np.mean(left) < -random_search(peak, peak, 20)[0] / 2
    assert tpe_order(peak.tolist(), (20, 20), 3, 6) == tpe_order(peak.tolist(), (20, 20), 3, 6)


def test_a_killed_replay_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    map = made_map(2)
    for folder in ("once", "twice"):
        (tmp_path / folder).mkdir()
    search_replay.make(map, tmp_path / "once", 2, "command", log=lambda _: None)
    search_replay.make(map, tmp_path / "twice", 1, "command", log=lambda _: None)
    path = search_replay.path_of(tmp_path / "twice", map)
    before = path.read_bytes()
    path.write_bytes(before[:-9])  # a kill in the middle of a line
    search_replay.make(map, tmp_path / "twice", 2, "command", log=lambda _: None)

    def orders(folder: str) -> dict[tuple[str, str], str]:
        rows = search_replay.read_rows(search_replay.path_of(tmp_path / folder, map))
        return {(row["seed"], row["repetition"]): row["order"] for row in rows}

    assert orders("once") == orders("twice")
    assert len(orders("once")) == 4
    size = path.stat().st_size
    search_replay.make(map, tmp_path / "twice", 2, "command", log=lambda _: None)
    assert path.stat().st_size == size


def test_missing_orders_are_told_with_the_command(tmp_path: Path) -> None:
    synthetic.write(tmp_path, ["full", "grid"])
    with pytest.raises(FileNotFoundError, match=r"python -m course\.experiments\.search_replay"):
        search_replay.load(tmp_path)


def test_the_figure_says_what_it_shows() -> None:
    replay = made_replay()
    figure = plots.promises(replay, range(1, 10))
    plots.check_labels(figure)
    alt = plots.promises_alt(replay, [1, 9])
    promised, kept = replay.mean_curve(TPE, [9])[0]
    assert f"after 9 promised {promised:.2f}, kept {kept:.2f}" in alt


# --- the shipped rows, and what the lesson says of them


@pytest.fixture(scope="module")
def shipped() -> Replay:
    return search_replay.load()


def test_the_stored_orders_are_searches_of_the_map(shipped: Replay) -> None:
    assert shipped.repetitions == 40
    assert len(shipped.map.settings) == 25
    for order in shipped.orders.values():
        assert len(set(order)) == len(order) == search_replay.LONGEST
        assert set(order) <= set(range(25))


def test_a_stored_order_can_be_drawn_again(shipped: Replay) -> None:
    optuna = pytest.importorskip("optuna")
    rows = search_replay.read_rows(search_replay.path_of(data_dir() / "results", shipped.map))
    made_with = rows[0]["optuna"] if rows else ""
    if optuna.__version__ != made_with:
        pytest.skip(f"the orders were drawn by optuna {made_with}")
    values = shipped.map.promised(3).tolist()
    assert tuple(tpe_order(values, (5, 5), 7)[0]) == shipped.orders[3, 7]


def test_what_the_lesson_says_of_the_map(shipped: Replay) -> None:
    tpe, random = (shipped.mean_curve(sampler, [5, 10, 20]) for sampler in (TPE, RANDOM))
    assert (np.abs(tpe[:, 1] - random[:, 1]) < 0.05).all()  # the choices are worth the same
    promised, kept = shipped.mean_curve(RANDOM, [25])[0]
    assert promised - kept > 0.5
    assert abs(random[-1, 1] - random[0, 1]) < 0.06  # after five trials nothing more is kept,
    assert random[-1, 0] - random[0, 0] > 0.2  # and the promise goes on rising
    assert shipped.default() > max(tpe[:, 1].max(), random[:, 1].max())
    gap = shipped.default(test=True) - shipped.mean_curve(RANDOM, [20], test=True)[0, 1]
    assert 0.15 < gap < 0.3
