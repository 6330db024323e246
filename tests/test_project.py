"""The promises of the project about itself: requirements, README, Makefile, structure."""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kdlib.data.sources import FASHION_FILES

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "kdlib").rglob("*.py"))
CONDA_NAMES = {"torch": "pytorch", "playwright": "playwright-python"}
# Arrows run from left to right only.
ROOMS = ("classroom", "cli", "distill", "study", "verdict", "train", "methods", "losses")


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_pyproject_and_environment_ask_for_the_same_things() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    asked = [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]
    renamed = {re.sub(r"^[\w-]+", lambda m: CONDA_NAMES.get(m[0], m[0]), requirement) for requirement in asked}
    lines = re.findall(r"^  - ([\w-]+>=[\d.]+)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    assert renamed | {f"python{project['requires-python']}"} == set(lines)
    assert len(lines) == len(set(lines))


def test_pip_can_read_what_conda_hands_it(tmp_path: Path) -> None:
    """conda writes the lines below `pip:` into a requirements file, in which fewer options are allowed."""
    lines = re.findall(r"^      - (.*)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    assert lines
    (tmp_path / "requirements.txt").write_text("\n".join(lines))
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps"]
    done = subprocess.run([*command, "-r", tmp_path / "requirements.txt"], cwd=ROOT, capture_output=True, text=True)
    assert "Obtaining file://" in done.stdout, done.stderr  # the line was read; to build it takes an index


def test_make_test_runs_the_lessons_too() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert settings["testpaths"] == ["tests", "notebooks"]


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


def test_requirements_are_lower_bounds_without_pins_or_local_versions() -> None:
    for name in ("pyproject.toml", "environment.yml"):
        text = (ROOT / name).read_text()
        assert not re.search(r"==|~=|\+cpu", text), name


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
    shipped = {path.name for path in (ROOT / "data").iterdir() if path.suffix in (".gz", ".safetensors")}
    assert set(sums) == shipped
    readme = (ROOT / "data" / "README.md").read_text()
    for name, value in sums.items():
        assert hashlib.sha256((ROOT / "data" / name).read_bytes()).hexdigest() == value, name
        assert value in readme, name
        assert name in readme, name
    assert FASHION_FILES.items() <= sums.items()


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_modules_and_functions_are_short_and_typed(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            # The signature and the docstring of a command are its options: they do not count.
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (body[-1].end_lineno - body[0].lineno + 1) if body else 0
            assert lines <= 45, f"{path.name}: {node.name} has {lines} lines"
            arguments = [*node.args.args, *node.args.kwonlyargs]
            untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            assert not untyped, f"{path.name}: {node.name} {untyped}"
            assert node.returns is not None or node.name == "__init__", f"{path.name}: {node.name} lacks a return type"


def imported(path: Path) -> set[str]:
    """The rooms of kdlib that a module names in its imports."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "kdlib":
                rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kdlib.")}
    return rooms


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_arrows_run_downwards_only(path: Path) -> None:
    room = path.relative_to(ROOT / "kdlib").parts[0].removesuffix(".py")
    if room in ROOMS:
        above = set(ROOMS[: ROOMS.index(room)])
        assert not imported(path) & above
    if room == "losses":
        assert imported(path) <= {"losses"}


def test_importing_kdlib_loads_nothing_that_is_not_used_yet() -> None:
    heavy = ["matplotlib", "ipywidgets", "torchmetrics", "typer", "pandas", "scipy"]
    code = "import sys; from kdlib import data, methods, models, train; "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_the_readmes_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example is executed as it stands, with fewer images."""
    from kdlib import train
    from kdlib.data import DataSet

    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert "train.fit(" in code
    fit = train.fit

    def quick(student: object, data: DataSet, **options: object) -> object:
        return fit(student, data.take(256), **{**options, "epochs": 1, "progress": False, "test": False})

    monkeypatch.setattr(train, "fit", quick)
    exec(compile(code, "README.md", "exec"), {})
