"""The folder of a run: one run at a time, nothing overwritten unasked, and nothing left of runs that were killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kdlib import distributed, files
from kdlib.run_folder import ASIDE, PART, claim, locate, remove_earlier, set_aside

RESULTS = ("student.safetensors", "report.json")
OWN = f"{ASIDE}-{RESULTS[0]}"  # where a command with these results sets them aside
HOLDER = """
import sys, time
from kdlib.run_folder import claim, remove_earlier
with claim(sys.argv[1], ("a",), resume=False, overwrite=False):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_second_run_in_a_folder_that_is_in_use_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        for resume in (False, True):
            with (
                pytest.raises(OSError, match="is in use by another run that has not ended. Wait for it, or choose"),
                claim(tmp_path, RESULTS, resume=resume, overwrite=not resume),
            ):
                pass
    finally:
        first.kill()  # which leaves its lock file, but not its lock
        first.wait()
    with claim(tmp_path, RESULTS, resume=False, overwrite=False) as out:
        assert out == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_run_is_gone_on_from_or_replaced_only_when_that_is_asked_for(tmp_path: Path) -> None:
    for name in (*RESULTS, "notes.txt"):
        (tmp_path / name).write_text(name)
    with (
        pytest.raises(
            ValueError, match=r"holds an earlier run \(student.safetensors, report.json\).*--resume.*--overwrite"
        ),
        claim(tmp_path, RESULTS, resume=False, overwrite=False),
    ):
        pass
    with claim(tmp_path, RESULTS, resume=True, overwrite=False):
        assert (tmp_path / "report.json").read_text() == "report.json"
    with claim(tmp_path, RESULTS, resume=False, overwrite=True):
        assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock") == ["notes.txt"]
    with pytest.raises(ValueError, match="give one of the two"), claim(tmp_path, (), resume=True, overwrite=True):
        pass


def test_to_resume_where_there_is_nothing_says_that_it_starts_anew(tmp_path: Path) -> None:
    said: list[str] = []
    with claim(tmp_path / "new", RESULTS, resume=True, overwrite=False, echo=said.append):
        pass
    assert said == [f"There is nothing in {tmp_path / 'new'} to go on from: the run starts anew."]


WRITER = """
import sys, time
from kdlib import files
with files.atomic_write(sys.argv[1]) as temporary:
    temporary.write_bytes(b"x" * 1000)
    print("written", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_what_a_killed_run_left_is_swept_by_the_next_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    path = tmp_path / "student.checkpoint"
    runs = [subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for run in runs:
            assert run.stdout is not None
            run.stdout.readline()
        runs[0].kill()
        runs[0].wait()
        assert len(list(tmp_path.iterdir())) == 2
        files.write_text(path, "new")
        left = [found.name for found in tmp_path.iterdir() if found != path]
        assert len(left) == 1
        assert f"-{runs[1].pid}." in left[0]
    finally:
        for run in runs:
            run.kill()
            run.wait()


def test_a_file_of_the_users_is_not_removed_by_the_proof_that_a_folder_can_be_written(tmp_path: Path) -> None:
    (tmp_path / ".writable").write_text("mine")
    files.ensure_writable(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(".writable", "mine")]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [("0o077", 0o600), ("0o022", 0o644), ("0o002", 0o664)])
def test_files_are_as_shared_as_the_umask_says(tmp_path: Path, umask: str, mode: int) -> None:
    code = f"import os, sys; os.umask({umask}); from kdlib import files; files.write_text(sys.argv[1], 'x')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True)
    assert os.stat(tmp_path / "a").st_mode & 0o777 == mode


def test_a_held_folder_is_cleared_of_the_named_results_alone(tmp_path: Path) -> None:
    for name in ("report.json", "notes.txt"):
        (tmp_path / name).write_text(name)
    with claim(tmp_path, (), resume=False, overwrite=True) as out:
        assert (tmp_path / "report.json").exists()
        remove_earlier(out, RESULTS)
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock") == ["notes.txt"]


@pytest.mark.parametrize("at_once", [True, False])
def test_an_earlier_run_comes_back_where_the_one_that_should_replace_it_is_refused(
    tmp_path: Path, at_once: bool
) -> None:
    for name in RESULTS:
        (tmp_path / name).write_text("earlier")
    with pytest.raises(ValueError, match="refused"), replacing(tmp_path, at_once):
        raise ValueError("refused")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(RESULTS, "earlier")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path, at_once):
        stop_after(tmp_path / "report.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [OWN, "report.json"]
    assert (tmp_path / "report.json").read_text() == "newer"
    # What it may have begun with is there until it has ended.
    found = {name: locate(tmp_path / name, tmp_path, resume=True) for name in RESULTS}
    assert {name: Path(path).read_text() for name, path in found.items()} == dict.fromkeys(RESULTS, "earlier")
    with claim(tmp_path, RESULTS, resume=True, overwrite=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_an_unfinished_run_that_is_replaced_comes_back_with_what_it_had_set_aside(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("first")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path, at_once=True):
        stop_after(tmp_path / "student.safetensors")
    # A third one begins with the first one's file, and is refused; then it is not.
    assert locate(tmp_path / "report.json", tmp_path, resume=False) == tmp_path / OWN / "report.json"
    with pytest.raises(ValueError, match="refused"), claim(tmp_path, RESULTS, resume=False, overwrite=True):
        raise ValueError("refused")
    assert (tmp_path / "student.safetensors").read_text() == "newer"
    assert (tmp_path / OWN / "report.json").read_text() == "first"
    # It is interrupted as well: the file with which both began is found, and goes when one has ended.
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path, at_once=True, first=RESULTS[0]):
        stop_after(tmp_path / "student.safetensors")
    for resume in (False, True):
        assert Path(locate(tmp_path / "report.json", tmp_path, resume=resume)).read_text() == "first"
    with claim(tmp_path, RESULTS, resume=False, overwrite=True):
        (tmp_path / "report.json").write_text("third")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report.json": "third"}


def test_nothing_is_set_aside_before_every_process_has_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.json").touch()
    there: list[bool] = []
    monkeypatch.setattr(distributed, "barrier", lambda: there.append((tmp_path / "report.json").exists()))
    set_aside(tmp_path, RESULTS)
    assert there == [True, False]


def test_files_elsewhere_are_where_they_are(tmp_path: Path) -> None:
    (tmp_path / OWN).mkdir()
    for name in ("a", f"{OWN}/a", f"{OWN}/b"):
        (tmp_path / name).touch()
    assert locate(tmp_path / "a", tmp_path, resume=False) == tmp_path / "a"
    assert locate(tmp_path / "c", tmp_path, resume=True) == tmp_path / "c"
    assert locate("resnet8", tmp_path, resume=True) == "resnet8"
    assert locate(tmp_path / "other" / "b", tmp_path, resume=True) == tmp_path / "other" / "b"


def stop_after(path: Path) -> None:
    path.write_text("newer")
    raise KeyboardInterrupt


@contextmanager
def replacing(folder: Path, at_once: bool, first: str = "report.json") -> Iterator[None]:
    with claim(folder, RESULTS, resume=False, overwrite=True, at_once=at_once) as out:
        assert (out / first).exists() != at_once
        if not at_once:
            set_aside(out, RESULTS)
        yield


@pytest.mark.slow
def test_an_earlier_run_comes_back_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("earlier")
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDER.replace("overwrite=False", "overwrite=True"), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    assert not (tmp_path / "a").exists()
    first.kill()
    first.wait()
    with (
        pytest.raises(ValueError, match=r"holds an earlier run \(a\)"),
        claim(tmp_path, ("a",), resume=False, overwrite=False),
    ):
        pass
    assert (tmp_path / "a").read_text() == "earlier"


@pytest.mark.parametrize("results", [(), ("compare.json",), ("model.safetensors", "student.safetensors")])
def test_another_command_leaves_an_interrupted_run_and_what_it_has_set_aside(
    tmp_path: Path, results: tuple[str, ...]
) -> None:
    for name in RESULTS:
        (tmp_path / name).write_text("earlier")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path, at_once=True):
        stop_after(tmp_path / "report.json")
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    for overwrite in (False, True):
        with claim(tmp_path, results, resume=None, overwrite=overwrite):
            for name in results:
                (tmp_path / name).write_text("of the other command")
        for name in results:
            (tmp_path / name).unlink()
        assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_another_command_brings_back_what_a_killed_run_had_set_aside(tmp_path: Path) -> None:
    """It had written nothing yet; a report of the same name would else stand for its result."""
    for name in RESULTS:
        (tmp_path / name).write_text("earlier")
    with claim(tmp_path, RESULTS, resume=False, overwrite=True):
        (tmp_path / OWN).rename(tmp_path / "kept")  # as a kill leaves it
    (tmp_path / "kept").rename(tmp_path / OWN)
    with (
        pytest.raises(ValueError, match=r"holds an earlier run \(report.json\)"),
        claim(tmp_path, ("report.md", "report.json"), resume=None, overwrite=False),
    ):
        pass
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(RESULTS, "earlier")


def test_a_place_that_is_no_folder_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match="Could not write to .*file.*choose a folder you may write to"),
        claim(tmp_path / "file" / "run", RESULTS, resume=False, overwrite=False),
    ):
        pass


def test_a_command_that_cannot_resume_does_not_advise_it(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    with (
        pytest.raises(ValueError, match=r"an earlier run \(report.json\)\. Replace it with --overwrite, or choose"),
        claim(tmp_path, RESULTS, resume=None, overwrite=False),
    ):
        pass


def test_a_file_that_cannot_be_set_aside_leaves_the_earlier_run_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows such is one that another program holds open."""
    for name in RESULTS:
        (tmp_path / name).write_text(f"earlier {name}")
    replace = Path.replace

    def held_open(path: Path, target: Path) -> Path:
        if path == tmp_path / RESULTS[1]:
            raise PermissionError(f"{path} is open in another program")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", held_open)
    with pytest.raises(PermissionError), claim(tmp_path, RESULTS, resume=False, overwrite=True):
        pass
    assert [(tmp_path / name).read_text() for name in RESULTS] == [f"earlier {name}" for name in RESULTS]
    assert not (tmp_path / PART).exists()


@pytest.mark.parametrize("still_there", [(), RESULTS[1:]])
def test_a_move_that_was_killed_is_undone(tmp_path: Path, still_there: tuple[str, ...]) -> None:
    """On the way there, when some results have not been moved yet, and on the way back, when some are back."""
    (tmp_path / PART).mkdir()
    for name in RESULTS:
        folder = tmp_path if name in still_there else tmp_path / PART
        (folder / name).write_text(f"earlier {name}")
    with claim(tmp_path, RESULTS, resume=True, overwrite=False):
        assert [(tmp_path / name).read_text() for name in RESULTS] == [f"earlier {name}" for name in RESULTS]
    assert not (tmp_path / PART).exists()


def test_a_finished_run_without_its_checkpoint_is_not_trained_anew_by_resume(tmp_path: Path) -> None:
    results = ("student.safetensors", "baseline.checkpoint", "student.checkpoint")
    options = {"resume": True, "overwrite": False, "checkpoints": results[-1:]}
    (tmp_path / "baseline.checkpoint").touch()  # a run that was stopped before its second student
    with claim(tmp_path, results, **options):
        pass
    (tmp_path / "student.safetensors").touch()
    with (
        pytest.raises(
            ValueError, match=r"finished run \(student.safetensors\) without its student.checkpoint.*--overw"
        ),
        claim(tmp_path, results, **options),
    ):
        pass
    (tmp_path / "student.checkpoint").touch()
    with claim(tmp_path, results, **options):
        pass
