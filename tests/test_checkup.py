"""The checkup finds what is broken, names the remedy, and never raises."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

import pytest
import torch

from kdlib import checkup, data
from kdlib.checkup import Checkup, Finding

SHIPPED = Path(data.__file__).parents[2] / "data"
FILES = {"a.gz": b"twelve bytes", "results/table.csv": b"x,y\n1,2\n", "teacher.safetensors": bytes(2_500_000)}


def write_sums(folder: Path, files: dict[str, bytes], mark: str = " ") -> None:
    lines = [f"{hashlib.sha256(content).hexdigest()} {mark}{name}\n" for name, content in files.items()]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A small data folder with the sums of its files."""
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write_sums(tmp_path, FILES)
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    return tmp_path


def bad(found: Checkup) -> list[Finding]:
    return [finding for finding in found.findings if not finding.good]


def named(found: Checkup, what: str) -> Finding:
    (finding,) = [finding for finding in found.findings if finding.what == what]
    return finding


# --- a machine on which all is well


def test_the_shipped_tree_is_ready(monkeypatch, tmp_path: Path):
    if not (SHIPPED / "SHA256SUMS").is_file():
        for path in SHIPPED.glob("*.gz"):
            (tmp_path / path.name).symlink_to(path)
        write_sums(tmp_path, {path.name: path.read_bytes() for path in tmp_path.glob("*.gz")})
        monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    found = checkup.check()
    assert bad(found) == []
    assert found.ready
    assert str(found).endswith("Ready: everything is in place.")
    assert named(found, "train-images-idx3-ubyte.gz").found == "intact, 26.4 MB"


@pytest.mark.usefixtures("folder")
def test_everything_is_looked_at():
    found = checkup.check()
    whats = [finding.what for finding in found.findings]
    assert len(set(whats)) == len(whats)
    for what in ("python", "torch", "torchvision", "numpy", "safetensors", "processor", "computes on", *FILES):
        assert what in whats
    assert "jupyterlab" not in whats  # an extra is not required
    assert "pytest" not in whats
    assert found.ready
    assert named(found, "teacher.safetensors").found == "intact, 2.5 MB"
    assert named(found, "torch").found.startswith(torch.__version__)
    assert ">=" in named(found, "torch").found


@pytest.mark.usefixtures("folder")
def test_the_course_needs_more_than_the_library():
    library, course = ({finding.what for finding in checkup.check(course).findings} for course in (False, True))
    assert course - library == {"jupyterlab", "ipywidgets"}
    assert library <= course


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("chip", [True, False])
def test_slow_machines_are_told_so_and_are_ready(monkeypatch, chip: bool):
    monkeypatch.setattr(checkup.devices, "has_bfloat16", lambda device: chip)
    found = named(checkup.check(), "computes on")
    assert found.good
    assert ("no bfloat16 in this chip" in found.found) is not chip
    assert ("bfloat16" in found.found.partition(";")[0]) is chip


@pytest.mark.parametrize("mark", [" ", "*"])
def test_both_ways_of_writing_sums(folder: Path, mark: str):
    write_sums(folder, FILES, mark)
    assert bad(checkup.check()) == []


# --- broken files


def test_a_missing_file(folder: Path):
    (folder / "a.gz").unlink()
    assert bad(checkup.check()) == [Finding("a.gz", "missing", False, "git checkout -- data/a.gz")]


@pytest.mark.parametrize("content", [FILES["a.gz"][:-1], b"", b"twelve bytez", FILES["a.gz"] + b"\n"])
def test_a_truncated_or_altered_file(folder: Path, content: bytes):
    (folder / "a.gz").write_bytes(content)
    found = checkup.check()
    assert bad(found) == [Finding("a.gz", "truncated or altered", False, "git checkout -- data/a.gz")]
    assert not found.ready


def test_a_file_in_a_subfolder_is_named_with_it(folder: Path):
    (folder / "results" / "table.csv").unlink()
    (finding,) = bad(checkup.check())
    assert finding.what == "results/table.csv"
    assert finding.remedy == "git checkout -- data/results/table.csv"


def test_a_folder_in_the_place_of_a_file(folder: Path):
    (folder / "a.gz").unlink()
    (folder / "a.gz").mkdir()
    (finding,) = bad(checkup.check())
    assert finding.what == "a.gz"
    assert finding.found.startswith("unreadable")  # the system's words differ: a directory, or no permission


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch):
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "a.gz":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    (finding,) = bad(checkup.check())
    assert finding.what == "a.gz"
    assert "Permission denied" in finding.found


def test_no_sums(folder: Path):
    (folder / "SHA256SUMS").unlink()
    for _ in range(2):
        (finding,) = bad(checkup.check())
        assert f"{folder} holds no SHA256SUMS" in finding.found
        assert "KDLIB_DATA" in finding.remedy
        (folder / "SHA256SUMS").mkdir(exist_ok=True)  # and once more with one that cannot be read


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00", b"onlyonefield\n", b"<<<<<<< HEAD\n"])
def test_unreadable_sums(folder: Path, content: bytes):
    (folder / "SHA256SUMS").write_bytes(content)
    found = checkup.check()
    assert not found.ready
    assert all("git checkout" in finding.remedy for finding in bad(found))


def test_blank_lines_in_the_sums_say_nothing(folder: Path):
    sums = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text(sums.replace("\n", "\n\n") + "\n")
    assert checkup.check().ready


# --- versions


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("version", ["1.13.1", "2.8.0+cpu"])
def test_a_version_that_is_too_old(monkeypatch, version: str):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["torch>=2.9", "numpy>=2.0"])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "torch" else real(name))
    found = checkup.check()
    (finding,) = bad(found)
    assert finding.what == "torch"
    assert finding.found == f"{version} (asked: >=2.9)"
    assert finding.remedy == "pip install 'torch>=2.9'"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("version", ["2.9.0", "2.10.0+cu130", "3.0.0.dev20260101"])
def test_versions_that_are_new_enough(monkeypatch, version: str):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["torch>=2.9", "numpy>=2.0"])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "torch" else real(name))
    assert checkup.check().ready


@pytest.mark.usefixtures("folder")
def test_a_missing_package(monkeypatch):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "safetensors":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (finding,) = bad(checkup.check())
    assert (finding.what, finding.found) == ("safetensors", "missing")
    assert finding.remedy.startswith("pip install 'safetensors>=")


@pytest.mark.usefixtures("folder")
def test_kdlib_itself_is_not_installed(monkeypatch):
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    (finding,) = bad(checkup.check())
    assert (finding.what, finding.found) == ("kdlib", "not installed")
    assert "pip install" in finding.remedy


# --- how it reads


def test_the_table_marks_what_is_bad_and_says_what_to_do():
    found = Checkup((Finding("torch", "2.9", True), Finding("data", "missing", False, "git checkout -- data")))
    assert str(found).splitlines() == [
        "ok  torch  2.9",
        "NO  data   missing",
        "           -> git checkout -- data",
        "",
        "Not ready: mend the line marked NO.",
    ]
    assert not found.ready


def test_the_verdict_counts():
    two = Checkup(tuple(Finding(what, "missing", False, "mend") for what in ("a", "b")))
    assert str(two).endswith("Not ready: mend the 2 lines marked NO.")
    assert str(Checkup((Finding("a", "fine", True),))) == "ok  a  fine\n\nReady: everything is in place."
