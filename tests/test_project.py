"""The promises of the project about itself: requirements, README, Makefile, structure."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata
from itertools import chain
from pathlib import Path

import pytest
import yaml
from mutants import MUTANTS, Mutant
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import kdlib
from kdlib.data.sources import FASHION_FILES

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "kdlib").rglob("*.py"))
CONDA_NAMES = {"torch": "pytorch", "playwright": "playwright-python"}
# A part of kdlib may import those that come after it, and no other.
ORDER = (
    *(
        "__main__",
        "cli",
        "environment",
        "search",
        "study",
        "compare",
        "doctor",
        "distill",
        "microcontroller",
        "export",
        "compress",
        "run_folder",
    ),
    *("method_parser", "train", "trainer"),
    *("batches", "distiller", "checkpoints", "evaluation", "models", "ensembles", "teachers", "answers", "adapters"),
    *("methods", "tasks", "loss_table", "projectors", "measure", "hooks", "guards", "training_log", "workers", "data"),
    *("recipes", "devices", "distributed", "described", "files", "schemas", "verdict", "looks"),
    *("losses", "errors", "paths", "allocator"),
)

NEEDS_MAKE = pytest.mark.skipif(
    shutil.which("make") is None or os.name == "nt", reason="make sets up on Linux and macOS."
)


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_pyproject_and_environment_ask_for_the_same_things() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = (ROOT / "environment.yml").read_text()
    by_pip = re.search(r"--editable \.\[([\w,]+)\]", environment)[1].split(",")
    extras = [needs for name, needs in project["optional-dependencies"].items() if name not in by_pip]
    asked = [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]
    renamed = {re.sub(r"^[\w-]+", lambda m: CONDA_NAMES.get(m[0], m[0]), requirement) for requirement in asked}
    lines = re.findall(r"^  - ([\w-]+>=[\d.]+)$", environment, re.MULTILINE)
    assert set(by_pip) < set(project["optional-dependencies"])
    assert renamed | {f"python{project['requires-python']}"} == set(lines)
    assert len(lines) == len(set(lines))


def test_no_package_is_asked_for_with_a_newer_python_that_it_refuses() -> None:
    """pip would then install none of them; for an older Python it takes an older version of the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    refused = []
    for text in (*project["dependencies"], *chain(*project["optional-dependencies"].values())):
        asked = Requirement(text)
        with suppress(PackageNotFoundError):  # what is not installed here is not looked at
            taken = SpecifierSet(metadata(asked.name).get("Requires-Python", ""))
            for minor in range(sys.version_info.minor, 16):
                python = f"3.{minor}"
                wanted = asked.marker is None or asked.marker.evaluate({"python_version": python})
                refused += [(text, python)] * (wanted and f"{python}.0" not in taken)
    assert not refused


@pytest.mark.slow
def test_pip_can_read_what_conda_hands_it(tmp_path: Path) -> None:
    """conda writes the lines below `pip:` into a requirements file, in which fewer options are allowed."""
    lines = re.findall(r"^      - (.*)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    assert lines
    (tmp_path / "requirements.txt").write_text("\n".join(lines))
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps"]
    done = subprocess.run([*command, "-r", tmp_path / "requirements.txt"], cwd=ROOT, capture_output=True, text=True)
    assert "Obtaining file://" in done.stdout, done.stderr  # the line was read; to build it takes an index


def test_make_test_runs_everything_that_there_is() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert settings["testpaths"] == ["tests", "notebooks"]
    recipe = re.search(r"^test:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    parts = re.findall(r"-m pytest (.*)", recipe)
    assert [part.split()[0] for part in parts] == ["tests", "notebooks", "notebooks", "tests/browser"]
    left_out = [re.findall(r"(?:--ignore\S*|--deselect|-[mk]) (\"[^\"]+\"|\S+)", part) for part in parts]
    assert left_out == [["tests/browser"], ['"not one_thread"'], ["one_thread"], []]  # what another part runs
    assert "||" not in recipe  # no failure is passed over


def test_what_is_fast_comes_first_then_what_is_slow_the_lessons_and_the_browser(
    request: pytest.FixtureRequest,
) -> None:
    """As far as this run has them: all in make test."""
    folders = ("notebooks", "tests/browser")
    rooms = []
    for item in request.session.items:
        path = item.path.relative_to(ROOT).as_posix()
        slow = int(item.get_closest_marker("slow") is not None)
        rooms.append(next((number for number, one in enumerate(folders, 2) if path.startswith(one)), slow))
    assert rooms == sorted(rooms)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_seeded_fault_can_still_be_made_and_has_its_tests(mutant: Mutant) -> None:
    """What `make mutants` needs; it takes minutes, and says only then that a line has changed."""
    assert (ROOT / "kdlib" / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    for test in mutant.tests:
        path, *inside = test.split("::")
        assert (ROOT / path).is_file()
        assert not inside or f"def {inside[-1].partition('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8")


def test_what_pip_shall_install_stands_in_quotes_that_every_shell_knows() -> None:
    """To cmd.exe, the Anaconda Prompt, a single quote is a letter: it would write a file that is called =3.11'."""
    texts = [ROOT / "README.md", *(ROOT / "notebooks").glob("*.md")]
    texts += [path for folder in ("kdlib", "course") for path in (ROOT / folder).rglob("*.py")]
    single = re.compile(r"pip install (-\S+ )*'")
    assert [path.name for path in texts if single.search(path.read_text(encoding="utf-8"))] == []


def test_git_gives_text_the_line_ends_that_it_is_stored_with() -> None:
    """Otherwise Git for Windows writes CRLF, which sh cannot run, and to which rows with LF would be appended."""
    names = ["Makefile", ".ci/run", "data/results/headline.csv"]
    assert git("check-attr", "eol", "--", *names) == [f"{name}: eol: lf" for name in names]


def test_requirements_are_lower_bounds_without_pins_or_local_versions() -> None:
    for name in ("pyproject.toml", "environment.yml"):
        text = (ROOT / name).read_text()
        assert not re.search(r"==|~=|\+cpu", text), name


@NEEDS_MAKE
def test_every_make_target_that_the_readme_names_exists_and_is_in_the_help() -> None:
    helped = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"make ([\w-]+)", helped))
    assert {"distill", "lab", "test"} <= targets
    assert set(re.findall(r"`?make ([\w-]+)", (ROOT / "README.md").read_text())) <= targets
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert set(phony) - {"help"} <= targets


def test_the_readme_gives_the_command_of_make_distill_to_those_who_have_no_make() -> None:
    recipe = re.search(r"^distill:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    options = re.search(r"kdlib distill (.*) --out", recipe.replace("\\\n", " "))[1].split()
    commands = re.findall(r"kdlib distill (--teacher resnet50-fashion .*)", (ROOT / "README.md").read_text())
    assert [command.split() for command in commands] == [options, options]  # PowerShell's and conda's


def test_shipped_files_have_their_checksums_in_three_places_that_agree() -> None:
    sums = dict(reversed(line.split()) for line in (ROOT / "data" / "SHA256SUMS").read_text().splitlines())
    data = ROOT / "data"
    kinds = (".gz", ".npy", ".safetensors")
    files = [path.relative_to(data) for path in data.rglob("*") if path.suffix in kinds]
    # Results change with every study, and git has their history; what is unpacked is made anew on each machine.
    shipped = {path.as_posix() for path in files if path.parts[0] not in ("results", ".unpacked")}
    assert set(sums) == shipped
    readme = (ROOT / "data" / "README.md").read_text()
    for name, value in sums.items():
        assert hashlib.sha256((ROOT / "data" / name).read_bytes()).hexdigest() == value, name
        assert value in readme, name
        assert name in readme, name
    assert FASHION_FILES.items() <= sums.items()


def imported(path: Path, source: str | None = None) -> set[str]:
    """What a module names in its imports: `kdlib.data` for each of `from kdlib import data`, `import kdlib.data`.

    source: what stands in it, if not what the file holds. A relative import is named from the root on.
    """
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text() if source is None else source)):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"kdlib.{alias.name}" for alias in node.names} if module == "kdlib" else {module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize(
    ("place", "source", "expected"),
    [
        ("kdlib/train.py", "from kdlib import data, losses", {"kdlib.data", "kdlib.losses"}),
        ("kdlib/train.py", "import kdlib.data as d, os.path", {"kdlib.data", "os.path"}),
        ("kdlib/losses/logits.py", "from ._common import shape", {"kdlib.losses._common"}),
        ("kdlib/losses/logits.py", "from . import _common", {"kdlib.losses"}),
        ("kdlib/losses/__init__.py", "from .logits import kd", {"kdlib.losses.logits"}),
        ("kdlib/losses/logits.py", "from .. import files, train", {"kdlib.files", "kdlib.train"}),
        ("kdlib/losses/logits.py", "def f():\n    from ..data.sources import FILES", {"kdlib.data.sources"}),
        ("kdlib/train.py", "from .search import engine", {"kdlib.search"}),
        ("kdlib/train.py", "from . import search", {"kdlib.search"}),
    ],
)
def test_what_a_module_imports_is_seen_however_it_is_written(place: str, source: str, expected: set[str]) -> None:
    assert imported(ROOT / place, source) == expected


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_imports_run_downwards_only(path: Path) -> None:
    part = path.relative_to(ROOT / "kdlib").parts[0].removesuffix(".py")
    modules = {name.split(".")[1] for name in imported(path) if name.startswith("kdlib.")}
    if part == "__init__":
        assert not modules
        return
    assert part in ORDER, f"{part} has no place in the order of imports yet"
    assert modules - {part} <= set(ORDER[ORDER.index(part) + 1 :])


LOSSES = [path for path in MODULES if (ROOT / "kdlib" / "losses") in path.parents]


@pytest.mark.parametrize("path", LOSSES, ids=names(LOSSES))
def test_the_losses_import_torch_and_nothing_of_ours(path: Path) -> None:
    """So that they can be taken out of here as they are."""
    for name in imported(path):
        top = name.partition(".")[0]
        assert top == "torch" or top in sys.stdlib_module_names or f"{name}.".startswith("kdlib.losses."), name


VERSION = platform.python_version()
PLACES = {
    "its own place": ("command = /usr/bin/python3 -m venv {here}", VERSION, False),
    "the place of another clone": ("command = /usr/bin/python3 -m venv /elsewhere/.venv", VERSION, True),
    "another Python": ("command = /usr/bin/python3 -m venv {here}", "3.9.1", True),
    "made by another program": ("uv = 0.5.0", VERSION, False),
}


@NEEDS_MAKE
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("target", "folder", "stamp"),
    [
        ("distill", ".venv", ".base"),
        ("bench-peers", ".venv-peers", ".ready"),
        ("oldest", ".venv-oldest", ".ready"),
    ],
)
def test_an_environment_that_was_moved_or_lost_its_python_is_made_anew(
    place: str, target: str, folder: str, stamp: str, tmp_path: Path
) -> None:
    """A copied one would import kdlib from the clone that it was copied from."""
    made_by, version, stale = PLACES[place]
    clone = tmp_path / "a clone's folder"
    environment = clone / folder
    (environment / "bin").mkdir(parents=True)
    (clone / "benchmarks").mkdir()
    for name in ("Makefile", "pyproject.toml", "benchmarks/peers.txt"):
        shutil.copy(ROOT / name, clone / name)
    python = environment / "bin" / "python"
    python.symlink_to(sys.executable)
    text = f"version = {version}\n{made_by.format(here=environment)}\n"
    (environment / "pyvenv.cfg").write_text(text)
    for name in (".uv", stamp):
        (environment / name).touch()

    def planned() -> str:
        return subprocess.run(["make", "-n", target], cwd=clone, capture_output=True, text=True, check=True).stdout

    assert (f"rm -rf {folder}" in planned()) is stale
    assert ("pip install" in planned()) is stale
    python.unlink()
    assert f"rm -rf {folder}" in planned()


def git(*command: str) -> list[str]:
    """The lines that git prints of this checkout; where there is none, the test is skipped."""
    try:
        asked = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("There is no git.")
    if asked.returncode:
        pytest.skip("This is no git checkout.")
    return asked.stdout.splitlines()


def tracked(*patterns: str) -> list[str]:
    return git("ls-files", *patterns)


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_the_library_never_imports_the_course(path: Path) -> None:
    assert not {name for name in imported(path) if name.split(".")[0] == "course"}
    assert not re.search(r"\bimport_module\([^)]*course", path.read_text())


def test_notebooks_holds_lessons_and_the_pages_that_they_link_to() -> None:
    listed = tracked("notebooks")
    lessons = "".join(path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb"))
    others = [Path(name).name for name in listed if not name.endswith(".ipynb")]
    assert [name for name in others if not re.search(rf"\]\({re.escape(name)}(#[^)]*)?\)", lessons)] == []


def test_the_licence_names_every_folder_with_code() -> None:
    licence = (ROOT / "LICENSE").read_text("utf-8")
    folders = {name.partition("/")[0] + "/" for name in tracked("*.py") if "/" in name}
    assert folders >= {"kdlib/", "course/", "examples/"}
    assert not [folder for folder in folders if folder not in licence]


def test_every_part_of_kdlib_that_the_readme_names_loads_when_it_is_used() -> None:
    texts = [(ROOT / name).read_text("utf-8") for name in ("README.md", "examples/README.md", "CONTRIBUTING.md")]
    named = set(re.findall(r"`(?:(?!from)\w+ )*kdlib\.([a-z_]+)", "".join(texts)))
    assert named >= {"compress", "distributed", "doctor", "losses"}
    assert named <= set(kdlib.__all__)  # one that another part has loaded would be there by chance
    assert not [name for name in kdlib.__all__ if not hasattr(kdlib, name)]


def test_no_file_names_a_folder_of_the_machine_that_it_was_made_on() -> None:
    names = tracked("data", "notebooks")
    texts = [ROOT / name for name in names if name.endswith((".json", ".csv", ".md", ".ipynb"))]
    assert len(texts) > 50
    of_a_machine = re.compile(r"/(?:work/main|root|home/\w+)/")
    assert not [path for path in texts if path.exists() and of_a_machine.search(path.read_text())]


@pytest.mark.slow
@NEEDS_MAKE
def test_an_environment_that_was_left_half_made_is_made_again(tmp_path: Path) -> None:
    """As Ctrl-C leaves it, or a Debian without python3-venv: an interpreter, and no pip."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    stub = tmp_path / "python"
    stub.write_text(
        "#!/bin/sh\n"
        'echo "$@" >> calls\n'
        'case "$*" in "-m venv .venv") mkdir -p .venv/bin && cp python .venv/bin/python && touch whole;;\n'
        '"-m pip --version") test -e whole;; esac\n'
    )
    stub.chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(stub, tmp_path / ".venv" / "bin")
    command = ["make", f"PYTHON={stub}", ".venv/.base"]
    for _ in range(2):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    calls = (tmp_path / "calls").read_text().split("\n")
    assert calls.count("-m venv .venv") == 1
    assert sum(call.startswith("-m pip install") for call in calls) == 1


def test_one_version_is_said_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert kdlib.__version__ == version
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version


def test_the_workflow_runs_commands_that_exist() -> None:
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    steps = [step for job in yaml.safe_load(workflow)["jobs"].values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    assert "make lint" in commands
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word.split()[1] for word in commands if word.startswith("make ")} <= set(targets)


@pytest.mark.slow
def test_importing_kdlib_loads_nothing_that_is_not_used_yet() -> None:
    heavy = ["matplotlib", "ipywidgets", "torchmetrics", "typer", "pandas", "scipy"]
    code = "import sys; from kdlib import data, methods, models, train; "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


@pytest.mark.slow
def test_the_readmes_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example is executed as it stands, with fewer images."""
    from kdlib import train
    from kdlib.data import DataModule

    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert "train.fit(" in code
    fit = train.fit

    def quick(student: object, data: DataModule, **options: object) -> object:
        return fit(student, data.subset(256), **{**options, "epochs": 1, "progress": False, "test": False})

    monkeypatch.setattr(train, "fit", quick)
    exec(compile(code, "README.md", "exec"), {})


def test_the_readmes_loop_is_the_one_that_is_executed() -> None:
    """Its block is the first program of examples/README.md, which tests/test_user_programs.py executes."""
    blocks = [
        re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
        for path in (ROOT / "README.md", ROOT / "examples" / "README.md")
    ]
    assert blocks[0][1] == blocks[1][1]


@NEEDS_MAKE
@pytest.mark.parametrize("name", ["my runs/x", "/tmp/it's/student.safetensors", "a, b; (c) & \\"])
@pytest.mark.parametrize(
    ("target", "variable", "option"), [("distill", "OUT", "--out"), ("browser", "STUDENT", "--student")]
)
def test_a_name_given_to_make_reaches_the_command_as_one_word(
    target: str, variable: str, option: str, name: str
) -> None:
    command = ["make", "-n", "-s", "-o", ".venv/.base", "-o", ".venv/.browser", target, f"{variable}={name}"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = shlex.split(said.replace("\\\n", " "))
    assert words[words.index(option) + 1] == name
