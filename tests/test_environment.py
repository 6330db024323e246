"""The check of the environment finds what is broken, says how to fix it, and never raises."""

from __future__ import annotations

import hashlib
import importlib.metadata
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from kdlib import data, environment
from kdlib.environment import Check, EnvironmentReport

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


def failed(report: EnvironmentReport) -> list[Check]:
    return [check for check in report.checks if not check.ok]


def named(report: EnvironmentReport, name: str) -> Check:
    (check,) = [check for check in report.checks if check.name == name]
    return check


# --- a machine on which all is well


def test_the_shipped_tree_is_ready(monkeypatch, tmp_path: Path):
    if not (SHIPPED / "SHA256SUMS").is_file():
        for path in SHIPPED.glob("*.gz"):
            (tmp_path / path.name).symlink_to(path)
        write_sums(tmp_path, {path.name: path.read_bytes() for path in tmp_path.glob("*.gz")})
        monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    report = environment.check()
    assert failed(report) == []
    assert report.ready
    assert str(report).endswith("Ready: everything is in place.")
    assert named(report, "train-images-idx3-ubyte.gz").found == "intact, 26.4 MB"


@pytest.mark.usefixtures("folder")
def test_everything_is_checked():
    report = environment.check()
    names = [check.name for check in report.checks]
    assert len(set(names)) == len(names)
    for name in ("python", "torch", "torchvision", "numpy", "safetensors", "processor", "computes on", *FILES):
        assert name in names
    assert "jupyterlab" not in names  # an extra is not required
    assert "pytest" not in names
    assert report.ready
    assert named(report, "teacher.safetensors").found == "intact, 2.5 MB"
    assert named(report, "torch").found.startswith(importlib.metadata.version("torch"))
    assert ">=" in named(report, "torch").found


@pytest.mark.usefixtures("folder")
def test_a_device_that_the_machine_lacks_is_found_and_not_raised(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KDLIB_DEVICE", "tpu")
    report = environment.check()
    (fault,) = failed(report)
    assert fault.name == "computes on"
    assert "tpu" in fault.found
    assert "KDLIB_DEVICE" in fault.fix
    assert "Not ready" in str(report)


@pytest.mark.usefixtures("folder")
def test_the_course_needs_more_than_the_library():
    library, course = ({check.name for check in environment.check(extra).checks} for extra in (False, True))
    of_the_lessons = {"torch-pruning", "torchao", "onnx", "onnxscript", "onnxruntime", "optuna"}
    assert course - library == {"jupyterlab", "ipywidgets", "pycocotools", *of_the_lessons}
    assert library <= course


@pytest.mark.parametrize("windows", [True, False])
def test_a_program_with_a_blank_in_its_path_can_be_called(windows: bool) -> None:
    assert environment.as_command("/clone/python", windows) == "/clone/python"
    assert environment.as_command("/my clone/python", windows) == "& " * windows + '"/my clone/python"'


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("chip", [True, False])
def test_machines_without_bfloat16_are_named_and_ready(monkeypatch, chip: bool):
    monkeypatch.setattr(environment.devices, "supports_bfloat16", lambda device: chip)
    check = named(environment.check(), "computes on")
    assert check.ok
    assert ("without bfloat16" in check.found) is not chip
    assert ("bfloat16" in check.found.partition(";")[0]) is chip


@pytest.mark.parametrize("mark", [" ", "*"])
def test_both_ways_of_writing_sums(folder: Path, mark: str):
    write_sums(folder, FILES, mark)
    assert failed(environment.check()) == []


# --- broken files


def test_a_missing_file(folder: Path):
    (folder / "a.gz").unlink()
    assert failed(environment.check()) == [Check("a.gz", "missing", False, "git checkout -- data/a.gz")]


@pytest.mark.parametrize("content", [FILES["a.gz"][:-1], b"", b"twelve bytez", FILES["a.gz"] + b"\n"])
def test_a_truncated_or_altered_file(folder: Path, content: bytes):
    (folder / "a.gz").write_bytes(content)
    report = environment.check()
    assert failed(report) == [Check("a.gz", "truncated or altered", False, "git checkout -- data/a.gz")]
    assert not report.ready


def test_a_file_in_a_subfolder_is_named_with_it(folder: Path):
    (folder / "results" / "table.csv").unlink()
    (check,) = failed(environment.check())
    assert check.name == "results/table.csv"
    assert check.fix == "git checkout -- data/results/table.csv"


def test_several_files_of_a_folder_are_one_line_while_all_are_intact(folder: Path):
    (folder / "results" / "other.csv").write_bytes(b"z")
    write_sums(folder, dict(sorted((FILES | {"results/other.csv": b"z"}).items())))
    assert named(environment.check(), "results/").found == "intact, 2 files"
    (folder / "results" / "other.csv").write_bytes(b"y")
    (check,) = failed(environment.check())
    assert check.name == "results/other.csv"
    assert named(environment.check(), "results/table.csv").ok


def test_a_folder_in_the_place_of_a_file(folder: Path):
    (folder / "a.gz").unlink()
    (folder / "a.gz").mkdir()
    (check,) = failed(environment.check())
    assert check.name == "a.gz"
    assert check.found.startswith("unreadable")  # the system's words differ: a directory, or no permission


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch):
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "a.gz":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    (check,) = failed(environment.check())
    assert check.name == "a.gz"
    assert "Permission denied" in check.found


def test_no_sums(folder: Path):
    (folder / "SHA256SUMS").unlink()
    for _ in range(2):
        (check,) = failed(environment.check())
        assert f"{folder} holds no SHA256SUMS" in check.found
        assert "KDLIB_DATA" in check.fix
        (folder / "SHA256SUMS").mkdir(exist_ok=True)  # and once more with one that cannot be read


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00", b"onlyonefield\n", b"<<<<<<< HEAD\n"])
def test_unreadable_sums(folder: Path, content: bytes):
    (folder / "SHA256SUMS").write_bytes(content)
    report = environment.check()
    assert not report.ready
    assert all("git checkout" in check.fix for check in failed(report))


def test_blank_lines_in_the_sums_are_ignored(folder: Path):
    sums = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text(sums.replace("\n", "\n\n") + "\n")
    assert environment.check().ready


# --- versions


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("version", ["1.13.1", "2.8.0+cpu"])
def test_a_version_that_is_too_old(monkeypatch, version: str):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["torch>=2.9", "numpy>=1.26"])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "torch" else real(name))
    report = environment.check()
    (check,) = failed(report)
    assert check.name == "torch"
    assert check.found.startswith(f"{version} (")
    assert ">=2.9" in check.found
    assert check.fix == f'{environment._PYTHON} -m pip install "torch>=2.9"'


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("version", ["2.9.0", "2.10.0+cu130", "3.0.0.dev20260101"])
def test_versions_that_are_new_enough(monkeypatch, version: str):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["torch>=2.9", "numpy>=1.26"])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "torch" else real(name))
    assert environment.check().ready


@pytest.mark.usefixtures("folder")
def test_a_missing_package(monkeypatch):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "safetensors":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (check,) = failed(environment.check())
    assert (check.name, check.found) == ("safetensors", "missing")
    assert check.fix.startswith(f'{environment._PYTHON} -m pip install "safetensors>=')


@pytest.mark.usefixtures("folder")
def test_kdlib_itself_is_not_installed(monkeypatch):
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    (check,) = failed(environment.check())
    assert (check.name, check.found) == ("kdlib", "not installed")
    assert check.fix.startswith(f"{environment._PYTHON} -m pip install -e .")


# --- how it reads


def test_the_table_marks_what_failed_and_says_how_to_fix_it():
    report = EnvironmentReport((Check("torch", "2.9", True), Check("data", "missing", False, "git checkout -- data")))
    assert str(report).splitlines() == [
        "ok  torch  2.9",
        "NO  data   missing",
        "           -> git checkout -- data",
        "",
        "Not ready: fix the line marked NO.",
    ]
    assert not report.ready


def test_the_verdict_counts():
    two = EnvironmentReport(tuple(Check(name, "missing", False, "copy it") for name in ("a", "b")))
    assert str(two).endswith("Not ready: fix the 2 lines marked NO.")
    assert str(EnvironmentReport((Check("a", "fine", True),))) == "ok  a  fine\n\nReady: everything is in place."


# --- the extras


def test_the_extras_and_their_packages_are_those_of_pyproject():
    pyproject = tomllib.loads((SHIPPED.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, packages in environment.EXTRAS.items():
        wanted = {Requirement(text).name.replace("-", "_") for text in pyproject[name]}
        assert set(packages) == wanted, name
    assert set(environment.EXTRAS) == set(pyproject) - {"course", "dev"}


def test_an_extra_that_is_there_says_so_in_a_sentence(monkeypatch):
    monkeypatch.setitem(environment.EXTRAS, "device", ("json", "csv"))
    found = environment.extra("device")
    assert found.ready
    assert str(found) == "The extra device is installed."


def test_an_extra_that_is_not_there_says_what_is_missing_and_how_to_add_it(monkeypatch):
    monkeypatch.setitem(environment.EXTRAS, "device", ("json", "no_such_package"))
    found = environment.extra("device")
    assert not found.ready
    assert found.missing == ("no_such_package",)
    assert "no_such_package" in str(found)
    assert "left out" in str(found)
    assert f'{environment._PYTHON} -m pip install "kdlib[device]"' in str(found)


@pytest.mark.parametrize("name", ["devices", "", None, 3])
def test_an_unknown_extra_is_refused(name):
    with pytest.raises(ValueError, match="extra"):
        environment.extra(name)


def test_the_fix_for_a_package_of_an_extra_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ['pycocotools>=99; extra == "course"']
    monkeypatch.setattr(environment.importlib.metadata, "requires", lambda name: asked)
    fixes = [check.fix for check in environment.check(course=True).checks if check.name == "pycocotools"]
    assert fixes == [f'{environment._PYTHON} -m pip install "pycocotools>=99"']
