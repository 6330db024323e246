"""The tables of runs and of gains in data/results/README.md."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic import Score, write

from kdlib import files
from kdlib.study import results, runs_file
from kdlib.study.plans import PLANS, RunConfig
from kdlib.study.report import GAINS_MARKER, RUNS_MARKER, gains_table, update_readme
from kdlib.study.runs_file import RUN_COLUMNS, RunsFile, SessionLog

SKELETON = f"# Results\n\n{RUNS_MARKER}\n{RUNS_MARKER}\n\nAnd:\n\n{GAINS_MARKER}\n{GAINS_MARKER}\n\nThe end.\n"
SHIPPED = Path(__file__).resolve().parents[1] / "data" / "results" / "README.md"


def some(config: RunConfig, chance: random.Random) -> float | None:
    return None if (config.method, config.seed) == ("fsp", 2) else 0.9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = write(tmp_path, score=some)
    other = "kdlib study full --data 'imagefolder:a|b'"
    sessions = ("kdlib study full", 1.0, 0, 40), ("kdlib study full", 2.5, 40, 60), (other, 0.25, 60, 85)
    for command, hours, before, finished in sessions:
        log = SessionLog(path, command, before)
        log._started -= 3600 * hours
        log.write(finished)
    (tmp_path / "README.md").write_text(SKELETON)
    return tmp_path


def lines(folder: Path) -> list[list[str]]:
    table = (folder / "README.md").read_text().split(RUNS_MARKER)[1].strip().splitlines()
    return [[cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")] for line in table]


def test_a_row_holds_what_was_run_where_and_how_long(folder: Path) -> None:
    assert update_readme(folder) == folder / "README.md"
    head, _, first, second = lines(folder)
    assert head == ["file", "runs", "command", "machine", "dates", "versions", "hours"]
    assert first[:3] == ["`methods-resnet8-resnet20-fashion-10000.csv`", "60, 1 diverged", "`kdlib study full`"]
    machine = runs_file.machine_info()
    assert first[3].startswith(f"{machine['processor']}, {machine['cores']} cores, 1 thread, ")
    assert first[4] == json.loads(next(folder.glob("*.json")).read_text())["sessions"][0]["started"][:10]
    assert f"torch {runs_file.library_versions()['torch']}" in first[5]
    assert first[6] == "3.5"  # two sessions of the same command
    assert second[1] == "25"
    assert second[2] == "`kdlib study full --data 'imagefolder:a/b'`"


def test_a_session_that_was_stopped_before_its_first_run_is_left_out(folder: Path) -> None:
    SessionLog(next(folder.glob("*.csv")), "kdlib study full --workers 3", 85).write(85)
    update_readme(folder)
    assert len(lines(folder)) == 4


def test_the_threads_are_those_of_the_runs_and_not_of_the_command_that_shared_them_out(folder: Path) -> None:
    path = next(folder.glob("*.json"))
    log = json.loads(path.read_text())
    for session in log["sessions"]:
        session["machine"] |= {"cores": 4, "threads": 4}
    path.write_text(json.dumps(log))
    with RunsFile(folder / "other.csv", ("method", "seed")).open() as file:  # its rows do not say
        file.append({"method": "hard", "seed": 0})
    (folder / "other.json").write_text(json.dumps({"sessions": [log["sessions"][0] | {"rows": [1, 1]}]}))
    update_readme(folder)
    threads = [line[3].removeprefix(runs_file.machine_info()["processor"]) for line in lines(folder)[2:]]
    assert [text.split(",")[2] for text in threads] == [" 1 thread", " 1 thread", " 4 threads"]


def test_runs_of_one_command_with_other_threads_have_both_numbers(tmp_path: Path) -> None:
    with RunsFile(tmp_path / "other.csv", ("seed", "threads")).open() as file:
        for seed, threads in enumerate((2, 1, 2)):
            file.append({"seed": seed, "threads": threads})
    SessionLog(file.path, "kdlib study full").write(3)
    (tmp_path / "README.md").write_text(SKELETON)
    update_readme(tmp_path)
    assert ", 1 and 2 threads, " in lines(tmp_path)[2][3]


def test_a_command_is_shown_as_anyone_would_give_it(folder: Path) -> None:
    name = next(folder.glob("*.csv")).name
    path = folder / f"{Path(name).stem}.json"
    for sign in (" ", "="):
        command = (
            f"kdlib study short --choices{sign}/somebody/results/{name} --out=/somebody/results --cache '/tmp/a b'"
        )
        path.write_text(json.dumps({"sessions": [{"command": f"{command} --quiet --workers 2", "hours": 1}]}))
        update_readme(folder)
        assert lines(folder)[2][2] == f"`kdlib study short --choices{sign}data/results/{name} --workers 2`"


def test_a_file_in_a_folder_of_the_shipped_results_is_named_with_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDLIB_DATA", str(folder.parent))
    name = next(folder.glob("*.csv")).name
    session = {"command": f"kdlib study short --choices {name}", "hours": 1}
    (folder / f"{Path(name).stem}.json").write_text(json.dumps({"sessions": [session]}))
    update_readme(folder)
    assert lines(folder)[2][2] == f"`kdlib study short --choices data/{folder.name}/{name}`"


def test_the_rest_of_the_text_is_kept_and_twice_is_once(folder: Path) -> None:
    update_readme(folder)
    path = folder / "README.md"
    once, when = path.read_text(), path.stat().st_mtime_ns
    assert once.startswith(f"# Results\n\n{RUNS_MARKER}\n\n| file |")
    assert f" |\n\n{RUNS_MARKER}\n\nAnd:\n\n{GAINS_MARKER}\n\n| student |" in once
    assert once.endswith(f" |\n\n{GAINS_MARKER}\n\nThe end.\n")
    update_readme(folder)
    assert (path.read_text(), path.stat().st_mtime_ns) == (once, when)


def test_sessions_of_several_days_give_a_range(folder: Path) -> None:
    path = next(folder.glob("*.json"))
    log = json.loads(path.read_text())
    log["sessions"][1] |= {"started": "2031-02-03T10:00:00", "ended": "2031-02-04T01:00:00"}
    path.write_text(json.dumps(log))
    update_readme(folder)
    assert lines(folder)[2][4].endswith(" to 2031-02-04")


def test_files_are_sorted_and_one_without_a_session_log_is_there_too(folder: Path) -> None:
    write(folder, "grid")
    (folder / "other.json").write_text("{}")  # no session log, as no CSV file stands beside it
    update_readme(folder)
    assert [line[0][1:5] for line in lines(folder)[2:]] == ["grid", "meth", "meth"]
    assert lines(folder)[2][1:4] == [str(21 * 5), "not known", ""]


def test_a_session_log_with_gaps_is_no_reason_to_fail(folder: Path) -> None:
    path = next(folder.glob("*.json"))
    path.write_text(json.dumps({"sessions": [{"command": "x"}]}))
    update_readme(folder)
    assert lines(folder)[2][2:] == ["`x`", "not known", "", "not known", "0.0"]


def test_runs_of_which_no_session_is_known_are_counted(folder: Path) -> None:
    path = next(folder.glob("*.json"))
    log = json.loads(path.read_text())
    for number, session in enumerate(log["sessions"][:2]):
        del session["rows"]
        session["machine"]["processor"] = f"number {number}"
    path.write_text(json.dumps(log))
    update_readme(folder)
    assert [line[1:3] for line in lines(folder)[2:]] == [
        ["25", "`kdlib study full --data 'imagefolder:a/b'`"],
        ["60, 1 diverged", "not known"],
    ]


def test_what_macos_writes_beside_a_table_is_none(folder: Path) -> None:
    name = next(folder.glob("*.csv")).name
    (folder / f"._{name}").write_bytes(b"\x00\x05\x16\x07")
    update_readme(folder)
    assert {line[0] for line in lines(folder)[2:]} == {f"`{name}`"}
    assert len(runs_file.read_frame(folder / "*.csv")) == 85


def test_a_folder_without_runs_has_one_sentence_for_each_table(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(SKELETON)
    update_readme(tmp_path)
    assert lines(tmp_path) == [["No study has been run yet."]]
    assert "No method has been run yet." in (tmp_path / "README.md").read_text()


def test_a_folder_without_a_readme_gets_none(tmp_path: Path) -> None:
    write(tmp_path)
    assert update_readme(tmp_path) is None
    assert update_readme(tmp_path / "nowhere") is None
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize("mark", [RUNS_MARKER, GAINS_MARKER])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_readme_without_two_marks_is_refused_and_left_alone(tmp_path: Path, mark: str, count: int) -> None:
    text = SKELETON.replace(mark, "") + mark * count
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match=f"has {count} lines {mark}, expected two"):
        update_readme(tmp_path)
    assert (tmp_path / "README.md").read_text() == text


@pytest.mark.parametrize("text", ["[]", "{", "{}"])
def test_a_damaged_session_log_is_named(folder: Path, text: str) -> None:
    path = next(folder.glob("*.json"))
    path.write_text(text)
    with pytest.raises(ValueError, match=r"\.json cannot be read .* Restore it, or move it away"):
        update_readme(folder)
    assert (folder / "README.md").read_text() == SKELETON


def test_a_failed_write_leaves_the_readme_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="Could not write"):
        update_readme(folder)
    assert (folder / "README.md").read_text() == SKELETON
    assert not list(folder.glob(".*.tmp"))


# The table of gains.


def gains(folder: Path) -> dict[str, list[str]]:
    """The cells of each row by its first."""
    split = ([cell.strip() for cell in line.strip("|").split("|")] for line in gains_table(folder).splitlines())
    return {first: others for first, *others in split}


def all_but(*names: str) -> Callable[[RunConfig], bool]:
    return lambda config: config.method not in names


def planted(gain: float) -> Score:
    """Accuracies at which kd is ahead of hard labels by `gain`, and dkd ahead and behind in turn."""

    def score(config: RunConfig, chance: random.Random) -> float:
        added = {"kd": gain, "dkd": 0.01 * (-1) ** config.seed}.get(config.method, 0.0)
        return 0.8 + 0.01 * config.seed + added + chance.uniform(-0.001, 0.001)

    return score


def test_a_gain_that_is_the_same_in_all_runs_has_no_width(tmp_path: Path) -> None:
    write(tmp_path, skip=all_but("hard", "kd"), score=lambda config, chance: 0.75 + 0.125 * (config.method == "kd"))
    assert gains(tmp_path)["logits (KD)"] == ["+12.50, the same in all runs"]


def test_a_gain_is_shown_with_half_of_its_interval_and_its_verdict(tmp_path: Path) -> None:
    write(tmp_path, skip=all_but("hard", "kd", "dkd"), score=planted(0.02))
    found = results(folder=tmp_path).gain("kd")
    assert found.verdict == "BEATS"
    assert gains(tmp_path)["logits (KD)"] == [f"**{100 * found.mean:+.2f} ± {100 * found.half_width:.2f}**"]
    assert gains(tmp_path)["decoupled logits (DKD)"][0][0] in "+-"  # neither bold nor in italics
    assert gains(tmp_path)["hard labels, %"] == [f"{100 * results(folder=tmp_path).score('hard').mean:.2f}"]


def test_a_loss_is_in_italics(tmp_path: Path) -> None:
    write(tmp_path, skip=all_but("hard", "kd"), score=planted(-0.02))
    (cell,) = gains(tmp_path)["logits (KD)"]
    assert cell.startswith("*-2.")
    assert cell.endswith("*")
    assert not cell.endswith("**")


@pytest.mark.parametrize(("seeds", "marked"), [(3, False), (4, False), (5, True)])
def test_fewer_than_five_seeds_have_no_verdict(tmp_path: Path, seeds: int, marked: bool) -> None:
    for student, gain in {"resnet8": 0.05, "resnet18": -0.05}.items():
        write(tmp_path, skip=all_but("hard", "kd"), student=student, seeds=range(seeds), score=planted(gain))
    cells = gains(tmp_path)["logits (KD)"]
    assert [cell.strip("*")[0] for cell in cells] == ["+", "-"]
    assert ["*" in cell for cell in cells] == [marked, marked]


@pytest.mark.parametrize("name", [".", "long", "long/sixty-epochs"])
def test_a_shipped_table_with_gains_has_a_legend(name: str) -> None:
    above = (SHIPPED.parent / name / "README.md").read_text().split(GAINS_MARKER)[0].rpartition("\n## ")[2]
    assert "**bold**" in above
    assert "fewer than five seeds" in " ".join(above.split())


def test_columns_are_budgets_in_order_and_a_method_that_was_not_run_is_empty(tmp_path: Path) -> None:
    write(tmp_path, skip=all_but("hard", "kd", "rkd"), student="resnet18", seeds=range(3))
    write(tmp_path, skip=all_but("hard", "kd", "dkd"))
    write(tmp_path, skip=all_but("hard", "dkd"), images=1_000, epochs=7)
    write(tmp_path, "grid", images=1_000)  # of another kind
    found = gains(tmp_path)
    assert found["student"] == ["resnet8", "resnet8", "resnet18"]
    assert found["training images"] == ["1,000", "10,000", "10,000"]
    assert (found["epochs"], found["seeds"]) == (["7", "15", "15"], ["5", "5", "3"])
    assert [bool(cell) for cell in found["decoupled logits (DKD)"]] == [True, True, False]
    assert [bool(cell) for cell in found["distances and angles (RKD)"]] == [False, False, True]
    places = [
        list(found).index(name) for name in ("logits (KD)", "decoupled logits (DKD)", "distances and angles (RKD)")
    ]
    assert places == sorted(places)


def test_a_seed_that_diverged_leaves_no_mean(folder: Path) -> None:
    assert gains(folder)["flow between layers (FSP)"] == ["no mean"]


# The README that is shipped.


FOLDERS = (".", "older-search", "normalized", "long", "long/new-views", "long/sixty-epochs")


@pytest.mark.parametrize("readme", [SHIPPED.parent / name / "README.md" for name in FOLDERS])
def test_the_shipped_table_is_up_to_date(tmp_path: Path, readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If not: python -c "from kdlib.study.report import update_readme; update_readme('data/results')", or its long."""
    data = SHIPPED.parents[1]
    copied = tmp_path / readme.parent.relative_to(data)
    copied.mkdir(parents=True)
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    for path in readme.parent.glob("*.csv"):
        with path.open("rb") as file:
            try:
                runs_file._lock(file, path)
            except ValueError:
                pytest.skip("a study is running, and writes its table at the end")
    for path in readme.parent.iterdir():
        if path.is_file():
            (copied / path.name).write_bytes(path.read_bytes())
    update_readme(copied)
    assert (copied / "README.md").read_text() == readme.read_text()


def test_the_shipped_text_names_every_column_and_every_plan() -> None:
    text = SHIPPED.read_text()
    columns = text.partition("## Columns")[2].partition("## Repeat")[0]
    named = {name.strip() for line in columns.splitlines() for name in line.split("|")[1:2] for name in name.split(",")}
    assert set(RUN_COLUMNS) <= named
    assert all(f"kdlib study {plan}" in text for plan in PLANS)
    assert "kdlib study --again" in text


def test_controls_alone_and_somebody_elses_readme_end_no_study(tmp_path: Path) -> None:
    write(tmp_path, "controls")
    (tmp_path / "README.md").write_text(SKELETON)
    assert update_readme(tmp_path) == tmp_path / "README.md"
    assert "No runs of hard labels are in this folder" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("# My project\n")
    assert update_readme(tmp_path) is None
    assert (tmp_path / "README.md").read_text() == "# My project\n"


def test_a_teacher_that_is_hardly_ahead_has_a_share_of_the_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthetic.TEACHER", 0.9374)
    base = {0: 0.9370, 1: 0.9371, 2: 0.9369}

    def score(config: RunConfig, chance: random.Random) -> float | None:
        return base[config.seed] + (0.006 + 0.0001 * config.seed) * (config.method == "kd")

    write(tmp_path, seeds=range(3), score=score, skip=lambda config: config.method not in ("hard", "kd"))
    found = results(folder=tmp_path)
    assert found.gap_recovered("kd").mean > 10  # times the gap
    assert len(found.table()) == 2
